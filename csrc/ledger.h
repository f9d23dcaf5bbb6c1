// The ledger of a run: which cells every request in flight still wants, which are being evaluated, and the errors that
// came. It packs the cells of all requests into steps and hands the errors of finished looks back to the rule; which
// classes go on is decided outside (fastdc/rules). The only arithmetic with errors is the mean that names a closed
// request's best class: in Python it took a tenth of the time of a certificate.
//
// A request is one image in a slot of the image pool. It works on one *block* at a time: some of its classes at a range
// of draws, a rectangle of cells. A block is complete when every error of it is known. Blocks are proposed by priority,
// then in the order they came; within a block classes run fastest, so that neighbours share their noise.
//
// Memory of a request: O(classes) and one float per evaluated cell. Not thread-safe: one thread proposes and observes.
#pragma once

#include <cstdint>
#include <queue>
#include <unordered_map>
#include <vector>

#include "kernels.h"

namespace fastdc {

class Ledger {
 public:
  Ledger(int64_t n_draws, int64_t n_classes);

  // A new request in a free slot, whose first block is `classes` (increasing) at draws [0, end).
  void open(int32_t slot, const int32_t* classes, int64_t count, int32_t end, int32_t priority);
  // The next block of a request whose last one is complete: its classes alive at draws [drawn, end).
  void extend(int32_t slot, int32_t end, int32_t priority);
  // The next block of such a request: new classes (increasing, none of them evaluated) at draws [0, drawn).
  void add(int32_t slot, const int32_t* classes, int64_t count, int32_t priority);

  // Up to `room` cells of the blocks that are waiting, as one step; empty when nothing waits. Cell::image is the slot.
  // The ticket names the step for observe().
  struct Proposal {
    int64_t ticket;
    std::vector<Cell> cells;
  };
  Proposal propose(int64_t room);
  // The errors of a proposed step, in its order. Returns the slots whose block is now complete, in slot order.
  std::vector<int32_t> observe(int64_t ticket, const float* errors, int64_t count);

  // Of requests whose block is complete: draws evaluated, and the classes alive.
  int32_t drawn(int32_t slot) const;
  const std::vector<int32_t> alive(int32_t slot) const;
  // Writes the errors of the classes alive: row a of `errors`, `draws` apart, is class a at draws [0, drawn).
  void copy_errors(int32_t slot, int64_t draws, float* errors) const;
  // Drops the classes alive whose entry of `keep` is 0. At least one must stay.
  void drop(int32_t slot, const uint8_t* keep, int64_t count);

  // Ends a request whose block is complete: counts[k] errors of class k, in class order, one after the other in values.
  // Of the classes with most errors, `best` has the smallest mean (summed in double), the first one where several do.
  struct Closed {
    std::vector<int32_t> counts;
    std::vector<float> values;
    int32_t best = -1;
  };
  Closed close(int32_t slot);

  int64_t waiting() const { return waiting_; }  // cells that propose() could hand out now
  int64_t flying() const { return flying_; }    // cells proposed and not yet observed

 private:
  struct Row {
    int32_t label;
    std::vector<float> errors;
  };
  struct Request {
    std::vector<Row> alive, dropped;
    std::vector<int32_t> members;  // of the block: indices into alive
    int32_t drawn = 0;
    int32_t begin = 0, end = 0;  // draws of the block
    int64_t next = 0;            // cells of the block proposed
    int64_t missing = 0;         // cells of the block without an error
    int64_t size() const { return static_cast<int64_t>(members.size()) * (end - begin); }
  };
  struct Segment {
    int32_t slot;
    int64_t start, count;  // cells of the slot's block
  };
  struct Entry {
    int32_t priority;
    int64_t order;
    int32_t slot;
    bool operator<(const Entry& other) const {  // the largest comes first
      return priority != other.priority ? priority < other.priority : order > other.order;
    }
  };

  Request& at(int32_t slot);
  const Request& at(int32_t slot) const;
  Request& resting(int32_t slot);  // a request whose block is complete
  const Request& resting(int32_t slot) const;
  void check_classes(const int32_t* classes, int64_t count) const;
  void begin_block(int32_t slot, Request& request, int32_t begin, int32_t end, int32_t priority);

  int64_t n_draws_, n_classes_;
  std::unordered_map<int32_t, Request> requests_;
  std::unordered_map<int64_t, std::vector<Segment>> steps_;
  std::priority_queue<Entry> queue_;
  int64_t order_ = 0, ticket_ = 0, waiting_ = 0, flying_ = 0;
};

}  // namespace fastdc
