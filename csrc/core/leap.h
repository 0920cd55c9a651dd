// SGD of fits that share their design, by powers of the affine map that one epoch is of (parameters
// - optimum, buffer, optimum). For one fit (V = double) and for several in the lanes of a pack.
#pragma once

#include <type_traits>

#include "descent.h"
#include "optimum.h"
#include "terms.h"

namespace polyfuse {

// So many epochs as a map [2 K, 3 K], less the identity.
struct Jump {
  int64_t epochs = 0;
  const double* map = nullptr;  // null: nothing moves
  bool overflows = false;
};

struct Leaps {
  Jump jump[3];          // to the first recorded epoch, from one to the next, to the last
  bool at_once = false;  // nothing is recorded, and there is no buffer that the first epoch fills
  bool buffer = false, decay = false;  // whether such columns of the maps are not zero
};

inline namespace PF_ISA {

// s [K] of V: p (parameters), kept, of which the buffer is one, and optimum.
template <int K, class V, class S>
PF_HD void jump_to(const Leaps& leaps, const Jump& jump, int n_terms, const V* optimum, S& s) {
  const int terms = K ? K : n_terms;
  const double* const map = jump.map;  // what lies in memory is read again after every store
  const bool with_buffer = leaps.buffer, with_decay = leaps.decay;
  if (!map) return;
  V from[K ? K : kMaxTerms], to_p[K ? K : kMaxTerms], to_b[K ? K : kMaxTerms] = {};
  const auto buffer = [&](int j) PF_ALWAYS_INLINE -> V& { return s.kept[j][Sgd::kBuffer]; };
  for_terms<K>(terms, [&](int j) PF_ALWAYS_INLINE { from[j] = s.p[j] - optimum[j]; });
  const auto rows = [&](auto&& times) PF_ALWAYS_INLINE {
    const auto row = [&](int i) PF_ALWAYS_INLINE {
      const double* entry = map + i * 3 * terms;
      V change{};
      for_terms<K>(terms, [&](int j) PF_ALWAYS_INLINE { change += times(from[j], entry[j]); });
      if (with_buffer)
        for_terms<K>(terms,
                     [&](int j) PF_ALWAYS_INLINE { change += times(buffer(j), entry[terms + j]); });
      if (with_decay)
        for_terms<K>(terms, [&](int j) PF_ALWAYS_INLINE {
          change += times(optimum[j], entry[2 * terms + j]);
        });
      return change;
    };
    for_terms<K>(terms, [&](int i) PF_ALWAYS_INLINE { to_p[i] = row(i); });
    if (with_buffer) for_terms<K>(terms, [&](int i) PF_ALWAYS_INLINE { to_b[i] = row(terms + i); });
  };
  if (jump.overflows)  // but not for a fit that is at its optimum
    rows([](const V& v, double entry) { return if_zero(v, V{}, v * entry); });
  else
    rows([](const V& v, double entry) PF_ALWAYS_INLINE { return v * entry; });
  for_terms<K>(terms, [&](int i) PF_ALWAYS_INLINE {
    s.p[i] = (from[i] + to_p[i]) + optimum[i];
    if (with_buffer) buffer(i) += to_b[i];
  });
}

// The first epoch, which fills the buffers, and the last, whose gradient stays behind, are
// ordinary ones, of which step(epoch) is the update; those between are leapt over. A launch begins
// at an epoch that is recorded, where any are.
template <class Objective, class S, class Step, class Record>
PF_HD void leap(const Leaps& leaps, const Schedule& schedule, int n_terms,
                const Objective& objective, S& s, Step&& step, Record&& record) {
  constexpr int K = Objective::kTerms;
  const int terms = K ? K : n_terms;
  using V = std::decay_t<decltype(s.p[0])>;
  V optimum[K ? K : kMaxTerms];
  back_substitute(terms, objective.factor, objective.along, optimum);
  const int64_t last = schedule.epochs - 1, every = schedule.record_every;
  for (int64_t epoch = 0;;) {
    if (epoch > 0 || !leaps.at_once) {
      s.loss = objective(s.p, s.grad);
      if (epoch > last) return;
      if (records(schedule, epoch)) record(s.loss);
      if (epoch == 0 || epoch == last) {
        step(epoch);
        if (++epoch > last) {
          V unused[K ? K : kMaxTerms];
          s.loss = objective(s.p, unused);
          return;
        }
        if (epoch == last || records(schedule, epoch)) continue;
      }
    }
    const int64_t to = every > 0 ? epoch / every * every + every : last;
    const int64_t next = to < last ? to : last;
    const Jump* jump = leaps.jump;
    while (jump->epochs != next - epoch) ++jump;
    jump_to<K>(leaps, *jump, terms, optimum, s);
    epoch = next;
  }
}

}  // namespace PF_ISA
}  // namespace polyfuse
