#include "emulation/block.h"

#include <algorithm>
#include <cstring>
#include <sstream>
#include <utility>

namespace qe::emulation {
namespace {

struct Warp {
  Collective pending;
  std::uint32_t arrived = 0;
  void* arguments[kWarp] = {};
};

/** Everything of the launch under way; kept between launches, since stacks are dear. */
struct Machine {
  const Launch* launch = nullptr;
  Block block;
  std::vector<std::unique_ptr<Thread>> threads;
  std::size_t count = 0;  // threads of this launch
  std::vector<Warp> warps;
  std::vector<std::unique_ptr<SharedMemory>> shared;
  std::size_t at_barrier = 0, done = 0;
  Thread* current = nullptr;
  std::string fault;
  std::uint64_t threads_run = 0;
};

Machine& machine() {
  thread_local Machine one;
  return one;
}

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

std::string line_of(const std::source_location& where) {
  const std::string file = where.file_name();
  return text(file.substr(file.find_last_of('/') + 1), ":", where.line());
}

[[noreturn]] void fail(const std::string& what) {
  const Machine& m = machine();
  const dim3& b = m.block.block_index;
  std::string who = m.launch == nullptr ? "" : text(m.launch->kernel, ", block (", b.x, ",", b.y, ",", b.z, ")");
  if (m.current != nullptr) who += text(", thread ", m.current->id);
  throw Fault(text(who, ": ", what));
}

/** Divergent: not all threads of the block meet at one barrier. */
[[noreturn]] void fail_divergent(const Machine& m, const std::string& why) {
  for (std::size_t i = 0; i < m.count; ++i)
    if (m.threads[i]->state == Thread::State::at_barrier)
      fail(text("divergent barrier: thread ", i, " waits at ", line_of(m.threads[i]->where), ", ", why));
  fail("divergent barrier");
}

void enter(void* argument) {
  auto* thread = static_cast<Thread*>(argument);
  Machine& m = machine();
  try {
    m.launch->body();
    if (!thread->copies.empty() || std::ranges::any_of(thread->groups, [](const auto& g) { return !g.empty(); }))
      fail("cp.async was never waited for");
  } catch (const std::exception& error) {
    m.fault = error.what();
  }
  thread->state = Thread::State::done;
  ++m.done;
  thread->fiber.leave();
}

void start_threads(Machine& m) {
  const dim3 shape = m.launch->block;
  for (std::uint32_t id = 0; id < m.count; ++id) {
    Thread& thread = *m.threads[id];
    thread.id = id;
    thread.index = {id % shape.x, id / shape.x % shape.y, id / shape.x / shape.y};
    thread.state = Thread::State::ready;
    thread.clock = {id, id / kWarp, 0, 0};
    thread.copies.clear(), thread.groups.clear();
    thread.fiber.start(enter, &thread);
  }
  m.warps.assign((m.count + kWarp - 1) / kWarp, {});
  for (const auto& memory : m.shared) memory->reset();
  m.at_barrier = m.done = 0;
  m.threads_run += m.count;
}

void fail_stuck(Machine& m) {
  m.current = nullptr;
  for (std::size_t i = 0; i < m.count; ++i) {
    const Thread& thread = *m.threads[i];
    if (thread.state == Thread::State::in_collective)
      fail(text("thread ", i, " waits in ", m.warps[i / kWarp].pending.name, " at ", line_of(thread.where),
                " for lanes that never come"));
  }
  for (std::size_t i = 0; i < m.count; ++i)
    if (m.threads[i]->state == Thread::State::done) fail_divergent(m, text("thread ", i, " has left the kernel"));
  fail("nobody can go on");
}

void run_block(Machine& m, bool backwards) {
  start_threads(m);
  while (m.done < m.count) {
    bool moved = false;
    for (std::size_t i = 0; i < m.count; ++i) {
      Thread& thread = *m.threads[backwards ? m.count - 1 - i : i];
      if (thread.state != Thread::State::ready) continue;
      moved = true;
      m.current = &thread;
      thread.fiber.resume();
      if (!m.fault.empty()) throw Fault(m.fault);
    }
    if (!moved) fail_stuck(m);
  }
  m.current = nullptr;
}

}  // namespace

void run(const Launch& launch) {
  Machine& m = machine();
  m.launch = &launch;
  m.current = nullptr;
  m.fault.clear();
  m.shared.clear();
  m.count = std::size_t{launch.block.x} * launch.block.y * launch.block.z;
  const std::size_t blocks = std::size_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  if (blocks == 0 || m.count == 0 || m.count > 1024 || m.count % kWarp != 0)
    fail(text("a launch of ", blocks, " blocks of ", m.count, " threads; whole warps, at most 1024, are wanted"));
  if (launch.grid.y > 65535 || launch.grid.z > 65535) fail("a grid is at most 65535 high and deep");
  if (launch.shared_bytes > 48 * 1024) fail(text(launch.shared_bytes, " bytes of dynamic shared memory, 49152 at most"));
  while (m.threads.size() < m.count) m.threads.push_back(std::make_unique<Thread>());
  m.block.block_dim = launch.block, m.block.grid_dim = launch.grid;
  for (std::size_t i = 0; i < blocks; ++i) {
    m.block.block_index = {static_cast<unsigned>(i % launch.grid.x), static_cast<unsigned>(i / launch.grid.x % launch.grid.y),
                           static_cast<unsigned>(i / launch.grid.x / launch.grid.y)};
    run_block(m, i % 2 == 1);
  }
  m.launch = nullptr;
}

std::uint64_t threads_run() { return machine().threads_run; }
Thread& self() { return *machine().current; }
const Block& block() { return machine().block; }

void barrier(const std::source_location& where) {
  Machine& m = machine();
  Thread& me = *m.current;
  me.where = where;
  for (std::size_t i = 0; i < m.count && m.at_barrier > 0; ++i) {
    const Thread& other = *m.threads[i];
    if (other.state != Thread::State::at_barrier) continue;
    if (other.where.line() != where.line() || std::strcmp(other.where.file_name(), where.file_name()) != 0)
      fail_divergent(m, text("thread ", me.id, " at ", line_of(where)));
    break;
  }
  me.state = Thread::State::at_barrier;
  if (m.done > 0) fail_divergent(m, "and another thread has left the kernel");
  if (++m.at_barrier < m.count) {
    me.fiber.pause();
    return;
  }
  m.at_barrier = 0;
  for (std::size_t i = 0; i < m.count; ++i) {
    m.threads[i]->state = Thread::State::ready;
    ++m.threads[i]->clock.block_epoch;
  }
}

void collective(const Collective& what, void* arguments, bool orders_memory) {
  Machine& m = machine();
  Thread& me = *m.current;
  const std::uint32_t lane = me.id % kWarp, bit = 1u << lane;
  Warp& warp = m.warps[me.id / kWarp];
  me.where = what.where;
  if ((what.mask & bit) == 0) fail(text(what.name, " at ", line_of(what.where), ": the mask leaves out its own lane"));
  if (warp.arrived == 0) {
    warp.pending = what;
  } else if (warp.pending.mask != what.mask || warp.pending.compute != what.compute ||
             warp.pending.where.line() != what.where.line()) {
    fail(text("mismatched collectives in one warp: ", what.name, " at ", line_of(what.where), ", but ",
              warp.pending.name, " at ", line_of(warp.pending.where)));
  }
  warp.arguments[lane] = arguments;
  warp.arrived |= bit;
  if (warp.arrived != what.mask) {
    me.state = Thread::State::in_collective;
    me.fiber.pause();
    return;
  }
  if (what.compute != nullptr) what.compute(warp.arguments, what.mask);
  for (std::uint32_t i = 0; i < kWarp; ++i) {
    if ((what.mask >> i & 1) == 0) continue;
    Thread& other = *m.threads[me.id / kWarp * kWarp + i];
    other.state = Thread::State::ready;
    if (orders_memory) ++other.clock.warp_epoch;
    warp.arguments[i] = nullptr;
  }
  warp.arrived = 0;
}

void copy_async(void* to, const void* from, std::size_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(to) % 16 != 0 || reinterpret_cast<std::uintptr_t>(from) % 16 != 0)
    fail("cp.async of 16 bytes wants addresses that are multiples of 16");
  touch_shared(to, 16, true);
  std::memset(to, 0xff, 16);
  self().copies.push_back({to, from, bytes});
}

void commit_copies() { self().groups.push_back(std::exchange(self().copies, {})); }

void wait_copies(std::size_t pending) {
  Thread& me = self();
  const std::size_t land = me.groups.size() - std::min(pending, me.groups.size());
  for (std::size_t i = 0; i < land; ++i)
    for (const AsyncCopy& copy : me.groups[i]) {
      touch_shared(copy.to, 16, true);
      std::memset(copy.to, 0, 16);
      std::memcpy(copy.to, copy.from, copy.bytes);
    }
  me.groups.erase(me.groups.begin(), me.groups.begin() + static_cast<std::ptrdiff_t>(land));
}

SharedMemory::SharedMemory(const void* tag_, std::size_t bytes_, std::size_t element_)
    : tag(tag_), bytes(bytes_), element(element_) {
  data.reset(new std::byte[bytes]);
  shadow.resize(bytes / element);
  reset();
}

void SharedMemory::reset() {
  std::memset(data.get(), 0xff, bytes);
  std::ranges::fill(shadow, Shadow{});
}

void SharedMemory::touch(std::size_t from, std::size_t length, bool write) {
  if (from + length > bytes || from > bytes) shared_index_fault(from / element, bytes / element);
  const Clock& me = self().clock;
  const auto apart = [&](const Clock& then) {  // true: nothing orders `then` before now
    return then.block_epoch == me.block_epoch && !(then.warp == me.warp && then.warp_epoch < me.warp_epoch);
  };
  for (std::size_t i = from / element; i < (from + length + element - 1) / element; ++i) {
    Shadow& s = shadow[i];
    if (s.writer.thread != Shadow::kNobody && s.writer.thread != me.thread && apart(s.writer))
      fail(text("race in shared memory: element ", i, " was written by thread ", s.writer.thread, " and is ",
                write ? "written" : "read", " with no barrier between"));
    if (write) {
      const bool alone = s.reader.thread == me.thread || s.reader.thread == Shadow::kNobody;
      if (!alone && (s.reader.thread == Shadow::kMany ? s.reader.block_epoch == me.block_epoch : apart(s.reader)))
        fail(text("race in shared memory: element ", i, " was read by another thread and is written with no barrier between"));
      s.writer = me;
      s.reader.thread = Shadow::kNobody;
      continue;
    }
    if (s.writer.thread == Shadow::kNobody) fail(text("element ", i, " of shared memory is read and nobody wrote it"));
    const bool first = s.reader.thread == Shadow::kNobody || s.reader.block_epoch != me.block_epoch;
    if (first || s.reader.thread == me.thread) {
      s.reader = me;
    } else if (s.reader.warp != me.warp || s.reader.thread == Shadow::kMany) {
      s.reader.thread = Shadow::kMany;
    } else {
      s.reader = {Shadow::kManyOfWarp, me.warp, me.block_epoch, std::max(me.warp_epoch, s.reader.warp_epoch)};
    }
  }
}

void SharedMemory::touch_atomic(std::size_t index) {
  Shadow& s = shadow[index];
  const Clock& me = self().clock;
  if (s.writer.thread != Shadow::kAtomic || s.writer.block_epoch != me.block_epoch) {
    touch(index * element, element, false);
    touch(index * element, element, true);
  }
  s.writer = {Shadow::kAtomic, Shadow::kAtomic, me.block_epoch, 0};
  s.reader.thread = Shadow::kNobody;
}

void shared_index_fault(std::size_t index, std::size_t count) {
  fail(text("shared memory out of bounds: element ", index, " of ", count));
}

SharedMemory& shared_memory(const void* tag, std::size_t bytes, std::size_t element) {
  Machine& m = machine();
  for (const auto& memory : m.shared)
    if (memory->tag == tag) return *memory;
  m.shared.push_back(std::make_unique<SharedMemory>(tag, bytes, element));
  return *m.shared.back();
}

SharedMemory& dynamic_shared_memory(std::size_t offset, std::size_t bytes, std::size_t element) {
  const std::size_t all = machine().launch->shared_bytes;
  if (offset % 16 != 0 || offset + bytes > all)
    fail(text("dynamic shared memory: ", bytes, " bytes at ", offset, " of ", all));
  return shared_memory(reinterpret_cast<const void*>(offset + 1), bytes, element);
}

SharedMemory& shared_memory_at(const void* address) {
  for (const auto& memory : machine().shared) {
    const auto* at = static_cast<const std::byte*>(address);
    if (at >= memory->data.get() && at < memory->data.get() + memory->bytes) return *memory;
  }
  fail("shared memory out of bounds: a pointer into no array");
}

}  // namespace qe::emulation
