// What the block that computes a run holds on chip, read at its start and written at its end.
#pragma once

#include "../core/run.h"
#include "reduce.cuh"
#include "team.cuh"

namespace polyfuse {

static_assert(sizeof(Workspace) == kHeader);

PF_DEVICE double read(Dtype dtype, int64_t address) {
  return dtype == Dtype::Float32 ? *reinterpret_cast<const float*>(address)
                                 : *reinterpret_cast<const double*>(address);
}

PF_DEVICE void write(Dtype dtype, int64_t address, double value) {
  if (!address) return;
  if (dtype == Dtype::Float32)
    *reinterpret_cast<float*>(address) = static_cast<float>(value);
  else
    *reinterpret_cast<double*>(address) = value;
}

PF_DEVICE UpdateRule rule_in(const double* rows, int i) {
  const double* row = rows + kRuleRow * i;
  UpdateRule rule;
  rule.method = static_cast<Method>(static_cast<int>(row[0]));
  for (int o = 0; o < kOptions; ++o) rule.option[o] = row[1 + o];
  return rule;
}

PF_DEVICE Dtype dtype_of_kept(const Run& run, int r) {
  return run.single >> r & 1 ? Dtype::Float32 : Dtype::Float64;
}

PF_DEVICE double kept_at(const Run& run, int r, int i) {
  const int64_t address = run.tables[(kKeptAt + r) * run.n_params + i];
  return address ? read(dtype_of_kept(run, r), address) : 0.0;
}

struct Desk {
  double params[kMaxParams], kept[kKept * kMaxParams], grad[kMaxParams], fresh[kMaxParams];
  double low[kMaxParams], high[kMaxParams];
  UpdateRule rule[kMaxParams];
  double coef[kMaxParams];
  double sums[kMaxSums], scratch[kScratch];
  CoefficientMap map;
  double factor[kMaxParams];
  Span spans[kMaxParams];
  int32_t slots[kMaxParams];

  PF_DEVICE State state() { return {params, kept, grad, low, high}; }

  template <class Team>
  PF_DEVICE void load_map(const Team& team, const Run& run) {
    const bool here = run.n_terms <= kMaxParams && run.n_slots <= kMaxParams;
    if (here) {
      team.each(run.n_terms, [&](int t) {
        factor[t] = run.factor[t];
        spans[t] = run.spans[t];
      });
      team.each(run.n_slots, [&](int f) { slots[f] = run.slots[f]; });
    }
    team.one([&] {
      map.n_params = run.n_params;
      map.n_coefficients = run.n_coefficients;
      map.n_terms = run.n_terms;
      map.factor = here ? factor : run.factor;
      map.spans = here ? spans : run.spans;
      map.slots = here ? slots : run.slots;
      map.identity = run.identity;
      map.apart = here && are_apart();
    });
  }

  // The parameters, from the rows or through the tables.
  template <class Team>
  PF_DEVICE void load_params(const Team& team, const Run& run) {
    const bool load = run.flags & kLoad;
    team.each(run.n_params, [&](int i) {
      params[i] = load ? read(run.data.dtype, run.tables[i]) : run.state[i];
    });
  }

  // The rest of the state and the rule; the row `before` is written by one block.
  template <class Team>
  PF_DEVICE void load_rest(const Team& team, const Run& run, bool writes) {
    const int n = run.n_params;
    const bool load = run.flags & kLoad;
    team.each(n, [&](int i) {
      rule[i] = rule_in(run.rule, i);
      for (int r = 0; r < kKept; ++r)
        kept[r * n + i] = load ? kept_at(run, r, i) : run.state[(kKeptRows + r) * n + i];
      if (load && rule[i].method == Method::Sgd)
        kept[Sgd::kFilled * n + i] = run.tables[(kKeptAt + Sgd::kBuffer) * n + i] != 0;
      low[i] = run.bounds ? run.bounds[i] : -INFINITY;
      high[i] = run.bounds ? run.bounds[n + i] : INFINITY;
      grad[i] = load ? 0.0 : run.state[kGrad * n + i];
      if (writes) run.state[kBefore * n + i] = params[i];
    });
  }

  // keep: whether what the run has found goes to the tables as well.
  template <class Team>
  PF_DEVICE void finish(const Team& team, const Run& run, const Outcome& out, double square,
                        bool keep = true) {
    const int n = run.n_params;
    const bool store = run.flags & kStore && keep && out.epochs > 0;
    team.each(n, [&](int i) {
      run.state[i] = params[i];
      for (int r = 0; r < kKept; ++r) run.state[(kKeptRows + r) * n + i] = kept[r * n + i];
      run.state[kGrad * n + i] = grad[i];
      if (store) write(run.data.dtype, run.tables[kGradAt * n + i], grad[i]);
    });
    if (store) store_owned(team, run);
    team.one([&] {
      double* const row = run.state + kStateRows * n;
      row[0] = static_cast<double>(out.epochs);
      row[1] = out.converged;
      row[2] = out.loss;
      row[3] = out.previous;
      row[4] = square;
    });
  }

  // Loss and, in `grad`, the gradient of the parameters, from `sums` of LossSums over `n` samples.
  template <class Team>
  PF_DEVICE double gradient(const Team& team, const Run& run, double n, const double* at,
                            double* into) {
    const double weight = run.criterion.weight * (run.mean ? 1.0 / n : 1.0);
    team.each(map.n_coefficients, [&](int k) { sums[1 + k] *= weight; });
    map.pull_back(team, at, sums + 1, into);
    return sums[0] * weight;
  }

  // The parameters that an optimizer holds and what is kept of them, to where the next ones go.
  template <class Team>
  PF_DEVICE void store_owned(const Team& team, const Run& run) {
    const int n = run.n_params;
    team.each(n, [&](int i) {
      if (rule[i].method == Method::None) return;
      write(run.data.dtype, run.tables[kNextAt * n + i], params[i]);
      for (int r = 0; r < kKept; ++r)
        write(dtype_of_kept(run, r), run.tables[(kNextKeptAt + r) * n + i], kept[r * n + i]);
    });
  }

 private:
  PF_DEVICE bool are_apart() const {
    unsigned long long coefficients = 0, parameters = 0;
    for (int t = 0; t < map.n_terms; ++t) {
      const unsigned long long coefficient = 1ull << spans[t].coefficient;
      if (coefficients & coefficient) return false;
      coefficients |= coefficient;
      for (int f = spans[t].begin; f < spans[t].end; ++f) {
        const unsigned long long parameter = 1ull << slots[f];
        if (parameters & parameter) return false;
        parameters |= parameter;
      }
    }
    return true;
  }
};

PF_DEVICE Workspace* workspace_of(const Run& run) { return static_cast<Workspace*>(run.workspace); }

// The desk's sums, of all blocks in each of them; partial sums alternate between two places.
PF_DEVICE void sum_everywhere(const Run& run, Desk& desk, int n_sums, int64_t& looks) {
  if (gridDim.x == 1) return;
  double* const partial = workspace_of(run)->sums() + (looks++ % 2) * int64_t(gridDim.x) * n_sums;
  publish(desk.sums, n_sums, partial);
  meet_grid(workspace_of(run));
  combine(partial, n_sums, desk.scratch, desk.sums);
}

// After an epoch: the rule that the next one follows.
template <class Team>
struct Follow {
  const Team& team;
  const Run& run;
  Desk& desk;
  int64_t row = 0;

  // The first epoch of another rule.
  PF_DEVICE int64_t change() const { return run.changes ? run.changes[row] : INT64_MAX; }
  PF_DEVICE void operator()(int64_t epochs) {
    if (change() > epochs) return;
    const double* const rows = run.rule + ++row * kRuleRow * run.n_params;
    team.each(run.n_params, [&](int i) { desk.rule[i] = rule_in(rows, i); });
  }
};

struct Recorder {
  double* at;
  bool writes;

  static PF_DEVICE Recorder of(const Run& run, bool writes) {
    return {run.state + kStateRows * run.n_params + kOutcome, writes && threadIdx.x == 0};
  }
  PF_DEVICE void operator()(double loss) {
    if (writes) *at = loss;
    ++at;
  }
};

PF_DEVICE bool is_step(const Run& run) { return run.flags & kStep; }

// One that rounds what it computes to the dtype of the tensors that it starts from.
PF_DEVICE bool is_single(const Run& run) {
  return is_step(run) && (run.flags & kLoad) && run.data.dtype == Dtype::Float32;
}

struct SkipNothing {
  PF_DEVICE void operator()(const Descent&, Outcome&, int64_t, Recorder&) const {}
};

// All epochs from the desk's parameters; skip(descent, outcome, first epoch of another rule,
// record) takes some after each.
template <class Team, class Objective, class Skip>
PF_DEVICE Outcome descend(const Team& team, Desk& desk, const Run& run, Objective& objective,
                          bool single, bool writes, Skip&& skip) {
  desk.load_rest(team, run, writes);
  const Descent descent{run.n_params, desk.rule, run.schedule, desk.fresh, single};
  Recorder record = Recorder::of(run, writes);
  Follow<Team> follow{team, run, desk};
  Outcome out;
  out.previous = run.schedule.previous;
  step_by_step(team, objective, descent, out, desk.state(), record, [&] {
    follow(out.epochs);
    skip(descent, out, follow.change(), record);
    follow(out.epochs);
    return true;
  });
  return out;
}

// All epochs of a grid whose blocks take the same steps.
template <class Objective, class Skip>
PF_DEVICE void descend_in_all_blocks(const Block& block, Desk& desk, const Run& run,
                                     Objective& objective, Skip&& skip) {
  const bool writes = blockIdx.x == 0;
  const Outcome out = descend(block, desk, run, objective, false, writes, skip);
  if (writes) desk.finish(block, run, out, NAN);
  leave_grid(workspace_of(run));
}

// One step from the desk's sums, by the block that has them.
template <class Objective>
PF_DEVICE void step_on_sums(const Block& block, Desk& desk, const Run& run, Objective&& objective) {
  desk.load_rest(block, run, true);
  const Descent descent{run.n_params, desk.rule, run.schedule, desk.fresh, is_single(run)};
  Outcome out;
  out.previous = run.schedule.previous;
  look(block, objective, descent, out, desk.state());
  move(block, descent, out, desk.state(), Recorder::of(run, true));
  desk.finish(block, run, out, NAN);
}

// Loss and gradient from the desk's sums over `n` samples.
struct Summed {
  const Run& run;
  Desk& desk;
  double n;
  template <class Team>
  PF_DEVICE double operator()(const Team& team, const double* params, double* grad) const {
    return desk.gradient(team, run, n, params, grad);
  }
};

}  // namespace polyfuse
