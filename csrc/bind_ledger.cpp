// The ledger in Python: NumPy arrays in and out, many requests per call. See ledger.h and fastdc/engine/scheduler.py.
// Calls on one ledger run one after the other, also in a Python without the GIL.
#include "bind_ledger.h"

#include <pybind11/numpy.h>

#include <algorithm>
#include <mutex>
#include <utility>

#include "exceptions.h"
#include "ledger.h"

namespace py = pybind11;

namespace fastdc {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

struct LockedLedger {
  LockedLedger(int64_t n_draws, int64_t n_classes) : ledger(n_draws, n_classes) {}
  Ledger ledger;
  std::recursive_mutex mutex;  // an allocation may run a finalizer, and that may call this ledger
};

// Holds the ledger for one call. A thread that has to wait lets the interpreter go on, or the holder could not.
class Hold {
 public:
  explicit Hold(std::recursive_mutex& mutex) : lock_(mutex, std::try_to_lock) {
    if (lock_.owns_lock()) return;
    py::gil_scoped_release release;
    lock_.lock();
  }

 private:
  std::unique_lock<std::recursive_mutex> lock_;
};

// The function with the ledger held.
template <class Result, class Self, class... Arguments>
auto locked(Result (*function)(Self&, Arguments...)) {
  return [function](LockedLedger& shared, Arguments... arguments) {
    const Hold hold(shared.mutex);
    return function(shared.ledger, std::forward<Arguments>(arguments)...);
  };
}

template <class T>
py::array_t<T> to_array(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

void check_vector(const py::array& array, const char* name, py::ssize_t size) {
  FASTDC_CHECK(array.ndim() == 1 && (size < 0 || array.size() == size), name, " must be a vector",
               size < 0 ? "" : concat(" of ", size), ", got ", array.ndim(), " dimensions of ", array.size());
}

py::tuple propose(Ledger& ledger, int64_t room) {
  const Ledger::Proposal proposal = ledger.propose(room);
  py::array_t<int32_t> cells({static_cast<py::ssize_t>(proposal.cells.size()), py::ssize_t{3}});
  static_assert(sizeof(Cell) == 3 * sizeof(int32_t), "a cell is three int32");
  const auto* first = reinterpret_cast<const int32_t*>(proposal.cells.data());
  std::copy(first, first + cells.size(), cells.mutable_data());
  return py::make_tuple(proposal.ticket, cells);
}

// Returns (classes int32 (r, A), errors float32 (r, A, m)) of requests at the same number of draws. -1 and NaN fill
// short rows.
py::tuple gather(const Ledger& ledger, const Array<int32_t>& places) {
  check_vector(places, "places", -1);
  FASTDC_CHECK(places.size() > 0, "places must name at least one request");
  const int64_t requests = places.size();
  const int64_t draws = ledger.drawn(places.data()[0]);
  std::vector<std::vector<int32_t>> alive;
  size_t widest = 0;
  for (int64_t i = 0; i < requests; ++i) {
    alive.push_back(ledger.alive(places.data()[i]));
    widest = std::max(widest, alive.back().size());
  }
  const auto width = static_cast<int64_t>(widest);
  py::array_t<int32_t> classes({requests, width});
  py::array_t<float> errors({requests, width, draws});
  std::fill_n(classes.mutable_data(), classes.size(), -1);
  std::fill_n(errors.mutable_data(), errors.size(), std::numeric_limits<float>::quiet_NaN());
  for (int64_t i = 0; i < requests; ++i) {
    const auto& labels = alive[static_cast<size_t>(i)];
    std::copy(labels.begin(), labels.end(), classes.mutable_data() + i * width);
    ledger.copy_errors(places.data()[i], draws, errors.mutable_data() + i * width * draws);
  }
  return py::make_tuple(classes, errors);
}

void drop(Ledger& ledger, const Array<int32_t>& places, const Array<bool>& keep) {
  check_vector(places, "places", -1);
  FASTDC_CHECK(keep.ndim() == 2 && keep.shape(0) == places.size(), "keep must have a row for each of ", places.size(),
               " places");
  for (py::ssize_t i = 0; i < places.size(); ++i) {
    const auto alive = static_cast<int64_t>(ledger.alive(places.data()[i]).size());
    FASTDC_CHECK(alive <= keep.shape(1), "keep must have an entry for each of ", alive, " classes, got ",
                 keep.shape(1));
    ledger.drop(places.data()[i], reinterpret_cast<const uint8_t*>(keep.data(i, 0)), alive);
  }
}

void open(Ledger& ledger, int32_t place, const Array<int32_t>& classes, int32_t end, int32_t priority) {
  check_vector(classes, "classes", -1);
  ledger.open(place, classes.data(), classes.size(), end, priority);
}

void extend(Ledger& ledger, const Array<int32_t>& places, int32_t end, int32_t priority) {
  check_vector(places, "places", -1);
  for (py::ssize_t i = 0; i < places.size(); ++i) ledger.extend(places.data()[i], end, priority);
}

void add(Ledger& ledger, int32_t place, const Array<int32_t>& classes, int32_t priority) {
  check_vector(classes, "classes", -1);
  ledger.add(place, classes.data(), classes.size(), priority);
}

py::array_t<int32_t> observe(Ledger& ledger, int64_t ticket, const Array<float>& errors) {
  check_vector(errors, "errors", -1);
  return to_array(ledger.observe(ticket, errors.data(), errors.size()));
}

py::list close(Ledger& ledger, const Array<int32_t>& places) {
  check_vector(places, "places", -1);
  for (py::ssize_t i = 0; i < places.size(); ++i) ledger.drawn(places.data()[i]);  // checks all, then closes
  py::list all;
  for (py::ssize_t i = 0; i < places.size(); ++i) {
    const Ledger::Closed closed = ledger.close(places.data()[i]);
    all.append(py::make_tuple(to_array(closed.counts), to_array(closed.values), closed.best));
  }
  return all;
}

int32_t drawn(const Ledger& ledger, int32_t place) { return ledger.drawn(place); }
int64_t waiting(const Ledger& ledger) { return ledger.waiting(); }
int64_t flying(const Ledger& ledger) { return ledger.flying(); }

}  // namespace

void bind_ledger(py::module_& m) {
  py::class_<LockedLedger>(m, "Ledger", "Cells wanted, cells in flight and errors of the requests of a run.")
      .def(py::init<int64_t, int64_t>(), py::arg("n_draws"), py::arg("n_classes"))
      .def("open", locked(&open), py::arg("place"), py::arg("classes"), py::arg("end"), py::arg("priority"))
      .def("extend", locked(&extend), py::arg("places"), py::arg("end"), py::arg("priority"))
      .def("add", locked(&add), py::arg("place"), py::arg("classes"), py::arg("priority"))
      .def("propose", locked(&propose), py::arg("room"))
      .def("observe", locked(&observe), py::arg("ticket"), py::arg("errors"))
      .def("drawn", locked(&drawn), py::arg("place"))
      .def("gather", locked(&gather), py::arg("places"))
      .def("drop", locked(&drop), py::arg("places"), py::arg("keep"))
      .def("close", locked(&close), py::arg("places"))
      .def_property_readonly("waiting", locked(&waiting))
      .def_property_readonly("flying", locked(&flying));
}

}  // namespace fastdc
