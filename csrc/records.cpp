#include "records.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "tensor.h"

namespace polyfuse {
namespace {

// Of the bytes of a contiguous tensor: numpy's writes to them move no version.
uint64_t hash_of(PyObject* tensor) {
  constexpr uint64_t prime = 0x9E3779B97F4A7C15;
  constexpr size_t lanes = 4;
  const char* at = address_of(tensor);
  const auto size = py::handle(tensor).attr("nbytes").cast<size_t>();
  uint64_t hash[lanes] = {1, 2, 3, 4}, words[lanes];
  for (size_t i = 0; i < size; i += sizeof words) {
    std::memset(words, 0, sizeof words);
    std::memcpy(words, at + i, std::min(sizeof words, size - i));
    for (size_t k = 0; k < lanes; ++k) hash[k] = (hash[k] ^ words[k]) * prime + (hash[k] >> 29);
  }
  return hash[0] ^ hash[1] * 3 ^ hash[2] * 5 ^ hash[3] * 7;
}

}  // namespace

void Forward::start(py::object data) {
  x = std::move(data);
  x_version = version_of(x.ptr());
  if (!plain.is_none()) plain = py::none();
  if (!real.is_none()) real = py::none();
  freed = false;
}

bool Forward::untouched() const { return real.is_none() && !plain_changed(); }

void Forward::show(py::object values, bool hashed) {
  plain = std::move(values);
  plain_hash.reset();
  if (hashed) plain_hash = hash_of(plain.ptr());
}

bool Forward::plain_changed() const {
  if (plain.is_none()) return false;
  return version_of(plain.ptr()) != 0 || (plain_hash && hash_of(plain.ptr()) != *plain_hash);
}

int Forward::visit(visitproc visit, void* arg) const {
  for (const py::object* object : {&x, &plain, &real}) Py_VISIT(object->ptr());
  return 0;
}

void Forward::clear() {
  for (py::object* object : {&x, &plain, &real})
    if (!object->is_none()) *object = py::none();
}

void Objective::take_weight(const py::object& of_samples) {
  weight = of_samples;
  weight_version = weight.is_none() ? 0 : version_of(weight.ptr());
}

bool Objective::weight_unchanged() const {
  return weight.is_none() || version_of(weight.ptr()) == weight_version;
}

int Objective::visit(visitproc visit, void* arg) const {
  for (const py::object* object : {&forward_object, &y, &weight, &criterion_object, &real})
    Py_VISIT(object->ptr());
  return 0;
}

void Objective::clear() {
  forward = nullptr;
  for (py::object* object : {&forward_object, &y, &weight, &criterion_object, &real})
    if (!object->is_none()) *object = py::none();
}

}  // namespace polyfuse
