// The ledger of a run: the cells that every request in flight still wants, the cells that are being evaluated, and the
// errors so far. It packs the cells of all requests into steps and returns the errors of finished looks to the rule,
// which decides outside (fastdc/rules) which classes continue. The only arithmetic with errors is the mean that names a
// closed request's best class: in Python it took a tenth of the time of a certificate.
//
// A request is one image at a place of the image pool. It works on one *block* at a time: some of its classes at a
// range of draws, a rectangle of cells. A block is complete when all its errors are known. Blocks are proposed by
// priority, then in the order of their arrival. Within a block classes run fastest, so that neighbours share their
// noise.
//
// A request takes O(classes) memory plus one float per evaluated cell. Not thread-safe: bind_ledger.cpp locks it.
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

  // Opens a request at a free place. Its first block is `classes` (increasing) at draws [0, end).
  void open(int32_t place, const int32_t* classes, int64_t count, int32_t end, int32_t priority);
  // Starts the next block of a request whose last block is complete: its classes alive at draws [drawn, end).
  void extend(int32_t place, int32_t end, int32_t priority);
  // Starts another block of such a request: new classes (increasing, none of them evaluated) at draws [0, drawn).
  void add(int32_t place, const int32_t* classes, int64_t count, int32_t priority);

  // Makes a step of up to `room` cells of the waiting blocks; the step is empty if no block waits. Cell::image is the
  // place. The ticket identifies the step in observe().
  struct Proposal {
    int64_t ticket;
    std::vector<Cell> cells;
  };
  Proposal propose(int64_t room);
  // Takes the errors of a proposed step, in the step's order. Returns the places whose block is now complete, in order.
  std::vector<int32_t> observe(int64_t ticket, const float* errors, int64_t count);

  // The number of draws evaluated, and the classes alive, of a request whose block is complete.
  int32_t drawn(int32_t place) const;
  std::vector<int32_t> alive(int32_t place) const;
  // Writes the errors of the classes alive at draws [0, drawn), one class after the other, `draws` apart.
  void copy_errors(int32_t place, int64_t draws, float* errors) const;
  // Drops the classes alive whose entry of `keep` is 0. At least one class must stay.
  void drop(int32_t place, const uint8_t* keep, int64_t count);

  // Ends a request whose block is complete. `values` holds counts[k] errors of each class k, in class order. `best` is
  // the class with the smallest mean (summed in double) of those with most errors; of equal ones, the first.
  struct Closed {
    std::vector<int32_t> counts;
    std::vector<float> values;
    int32_t best = -1;
  };
  Closed close(int32_t place);

  int64_t waiting() const { return waiting_; }  // cells that propose() could return now
  int64_t flying() const { return flying_; }    // cells proposed and not yet observed

 private:
  struct ClassErrors {
    int32_t label;
    std::vector<float> errors;
  };
  struct Request {
    std::vector<ClassErrors> alive, dropped;
    std::vector<int32_t> members;  // classes of the block, as indices into alive
    int32_t drawn = 0;
    int32_t begin = 0, end = 0;  // draws of the block
    int64_t next = 0;            // cells of the block proposed
    int64_t missing = 0;         // cells of the block without an error
    int64_t size() const { return static_cast<int64_t>(members.size()) * (end - begin); }
  };
  struct Segment {
    int32_t place;
    int64_t start, count;  // cells of the block at that place
  };
  struct Entry {
    int32_t priority;
    int64_t order;
    int32_t place;
    bool operator<(const Entry& other) const {  // the queue returns the largest entry first
      return priority != other.priority ? priority < other.priority : order > other.order;
    }
  };

  Request& at(int32_t place);
  const Request& at(int32_t place) const;
  Request& resting(int32_t place);  // a request whose block is complete
  const Request& resting(int32_t place) const;
  void check_classes(const int32_t* classes, int64_t count) const;
  void begin_block(int32_t place, Request& request, int32_t begin, int32_t end, int32_t priority);

  int64_t n_draws_, n_classes_;
  std::unordered_map<int32_t, Request> requests_;
  std::unordered_map<int64_t, std::vector<Segment>> steps_;
  std::priority_queue<Entry> queue_;
  int64_t order_ = 0, ticket_ = 0, waiting_ = 0, flying_ = 0;
};

}  // namespace fastdc
