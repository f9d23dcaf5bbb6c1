// Implements ledger.h.
#include "ledger.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "exceptions.h"

namespace fastdc {

Ledger::Ledger(int64_t n_draws, int64_t n_classes) : n_draws_(n_draws), n_classes_(n_classes) {
  FASTDC_CHECK(n_draws > 0 && n_draws <= std::numeric_limits<int32_t>::max(), "n_draws must be positive, got ",
               n_draws);
  FASTDC_CHECK(n_classes > 0 && n_classes <= std::numeric_limits<int32_t>::max(), "n_classes must be positive, got ",
               n_classes);
}

Ledger::Request& Ledger::at(int32_t place) { return const_cast<Request&>(std::as_const(*this).at(place)); }

const Ledger::Request& Ledger::at(int32_t place) const {
  const auto found = requests_.find(place);
  FASTDC_CHECK(found != requests_.end(), "place ", place, " holds no request");
  return found->second;
}

Ledger::Request& Ledger::resting(int32_t place) { return const_cast<Request&>(std::as_const(*this).resting(place)); }

const Ledger::Request& Ledger::resting(int32_t place) const {
  const Request& request = at(place);
  FASTDC_CHECK(request.missing == 0, "place ", place, " still waits for ", request.missing, " errors");
  return request;
}

void Ledger::check_classes(const int32_t* classes, int64_t count) const {
  FASTDC_CHECK(count > 0, "a request needs at least one class");
  for (int64_t i = 0; i < count; ++i) {
    FASTDC_CHECK(classes[i] >= 0 && classes[i] < n_classes_, "classes must be in [0, ", n_classes_, "), got ",
                 classes[i]);
    FASTDC_CHECK(i == 0 || classes[i - 1] < classes[i], "classes must increase, got ", classes[i], " after ",
                 classes[i > 0 ? i - 1 : 0]);
  }
}

void Ledger::begin_block(int32_t place, Request& request, int32_t begin, int32_t end, int32_t priority) {
  FASTDC_CHECK(begin < end && end <= n_draws_, "a block must have draws inside [", begin, ", ", n_draws_,
               "], got an end of ", end);
  request.begin = begin;
  request.end = end;
  request.next = 0;
  request.missing = request.size();
  for (const int32_t member : request.members)
    request.alive[static_cast<size_t>(member)].errors.resize(static_cast<size_t>(end),
                                                             std::numeric_limits<float>::quiet_NaN());
  waiting_ += request.missing;
  queue_.push({priority, order_++, place});
}

void Ledger::open(int32_t place, const int32_t* classes, int64_t count, int32_t end, int32_t priority) {
  FASTDC_CHECK(place >= 0 && requests_.count(place) == 0, "place ", place, " is not free");
  check_classes(classes, count);
  FASTDC_CHECK(end > 0 && end <= n_draws_, "a block must end in (0, ", n_draws_, "], got ", end);
  Request& request = requests_[place];
  for (int64_t i = 0; i < count; ++i) {
    request.alive.push_back({classes[i], {}});
    request.members.push_back(static_cast<int32_t>(i));
  }
  begin_block(place, request, 0, end, priority);
}

void Ledger::extend(int32_t place, int32_t end, int32_t priority) {
  Request& request = resting(place);
  FASTDC_CHECK(end > request.drawn && end <= n_draws_, "a block must end in (", request.drawn, ", ", n_draws_,
               "], got ", end);
  request.members.resize(request.alive.size());
  for (size_t i = 0; i < request.members.size(); ++i) request.members[i] = static_cast<int32_t>(i);
  begin_block(place, request, request.drawn, end, priority);
}

void Ledger::add(int32_t place, const int32_t* classes, int64_t count, int32_t priority) {
  Request& request = resting(place);
  check_classes(classes, count);
  for (const auto* rows : {&request.alive, &request.dropped}) {
    for (const ClassErrors& row : *rows) {
      FASTDC_CHECK(!std::binary_search(classes, classes + count, row.label), "class ", row.label, " of place ", place,
                   " was evaluated before");
    }
  }
  for (int64_t i = 0; i < count; ++i) request.alive.push_back({classes[i], {}});
  std::sort(request.alive.begin(), request.alive.end(),
            [](const ClassErrors& left, const ClassErrors& right) { return left.label < right.label; });
  request.members.clear();
  for (size_t i = 0; i < request.alive.size(); ++i) {
    if (request.alive[i].errors.empty()) request.members.push_back(static_cast<int32_t>(i));
  }
  begin_block(place, request, 0, request.drawn, priority);
}

Ledger::Proposal Ledger::propose(int64_t room) {
  FASTDC_CHECK(room >= 0, "room must not be negative, got ", room);
  Proposal proposal{ticket_++, {}};
  if (room == 0 || queue_.empty()) return proposal;
  proposal.cells.reserve(static_cast<size_t>(std::min(room, waiting_)));
  std::vector<Segment>& segments = steps_[proposal.ticket];
  while (room > 0 && !queue_.empty()) {
    const int32_t place = queue_.top().place;
    Request& request = at(place);
    const auto members = static_cast<int64_t>(request.members.size());
    const int64_t count = std::min(room, request.size() - request.next);
    for (int64_t cell = request.next; cell < request.next + count; ++cell) {
      const int32_t member = request.members[static_cast<size_t>(cell % members)];
      proposal.cells.push_back({place, request.alive[static_cast<size_t>(member)].label,
                                request.begin + static_cast<int32_t>(cell / members)});
    }
    segments.push_back({place, request.next, count});
    request.next += count;
    room -= count;
    waiting_ -= count;
    flying_ += count;
    if (request.next == request.size()) queue_.pop();
  }
  return proposal;
}

std::vector<int32_t> Ledger::observe(int64_t ticket, const float* errors, int64_t count) {
  const auto step = steps_.find(ticket);
  FASTDC_CHECK(step != steps_.end(), "step ", ticket, " was not proposed or is already observed");
  int64_t expected = 0;
  for (const Segment& segment : step->second) expected += segment.count;
  FASTDC_CHECK(count == expected, "step ", ticket, " has ", expected, " cells, got ", count, " errors");
  std::vector<int32_t> complete;
  for (const Segment& segment : step->second) {
    Request& request = at(segment.place);
    const auto members = static_cast<int64_t>(request.members.size());
    for (int64_t cell = segment.start; cell < segment.start + segment.count; ++cell) {
      ClassErrors& row = request.alive[static_cast<size_t>(request.members[static_cast<size_t>(cell % members)])];
      row.errors[static_cast<size_t>(request.begin + cell / members)] = *errors++;
    }
    request.missing -= segment.count;
    if (request.missing == 0) {
      request.drawn = std::max(request.drawn, request.end);
      complete.push_back(segment.place);
    }
  }
  flying_ -= count;
  steps_.erase(step);
  std::sort(complete.begin(), complete.end());
  return complete;
}

int32_t Ledger::drawn(int32_t place) const { return resting(place).drawn; }

std::vector<int32_t> Ledger::alive(int32_t place) const {
  std::vector<int32_t> labels;
  for (const ClassErrors& row : resting(place).alive) labels.push_back(row.label);
  return labels;
}

void Ledger::copy_errors(int32_t place, int64_t draws, float* errors) const {
  const Request& request = resting(place);
  FASTDC_CHECK(request.drawn == draws, "place ", place, " has ", request.drawn, " draws, expected ", draws);
  for (const ClassErrors& row : request.alive) {
    errors = std::copy(row.errors.begin(), row.errors.end(), errors);
  }
}

void Ledger::drop(int32_t place, const uint8_t* keep, int64_t count) {
  Request& request = resting(place);
  const auto alive = static_cast<int64_t>(request.alive.size());
  FASTDC_CHECK(count == alive, "place ", place, " has ", alive, " classes alive, got a mask of ", count);
  FASTDC_CHECK(std::any_of(keep, keep + count, [](uint8_t kept) { return kept != 0; }), "place ", place,
               " would lose its last class");
  std::vector<ClassErrors> kept;
  for (int64_t i = 0; i < count; ++i) {
    (keep[i] != 0 ? kept : request.dropped).push_back(std::move(request.alive[static_cast<size_t>(i)]));
  }
  request.alive = std::move(kept);
  request.members.clear();
}

Ledger::Closed Ledger::close(int32_t place) {
  Request& request = resting(place);
  std::vector<ClassErrors*> rows;
  for (auto* group : {&request.alive, &request.dropped}) {
    for (ClassErrors& row : *group) rows.push_back(&row);
  }
  std::sort(rows.begin(), rows.end(),
            [](const ClassErrors* left, const ClassErrors* right) { return left->label < right->label; });
  Closed closed;
  closed.counts.resize(static_cast<size_t>(n_classes_));
  size_t most = 0;
  double least = 0;
  for (const ClassErrors* row : rows) {
    const size_t count = row->errors.size();
    closed.counts[static_cast<size_t>(row->label)] = static_cast<int32_t>(count);
    closed.values.insert(closed.values.end(), row->errors.begin(), row->errors.end());
    if (count < most) continue;
    const double sum = std::accumulate(row->errors.begin(), row->errors.end(), 0.0);
    if (count > most || sum < least) {
      most = count;
      least = sum;
      closed.best = row->label;
    }
  }
  requests_.erase(place);
  return closed;
}

}  // namespace fastdc
