#pragma once

#include <cstddef>

namespace qe::emulation {

/**
 * A stack of its own that runs until it hands control back; one host thread, no preemption.
 *
 * The switch saves the callee-saved registers of the System V x86-64 and AAPCS64 calling conventions, nothing else (no
 * signal mask, no system call); elsewhere <ucontext.h> does it. AddressSanitizer is told of every switch.
 */
class Fiber {
 public:
  using Entry = void (*)(void* argument);

  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /** Forgets what ran here before; the next resume() calls entry(argument), which must end in leave(). */
  void start(Entry entry, void* argument);
  /** From the host's stack: runs the fiber until it calls pause() or leave(). */
  void resume();
  /** On the fiber: back to the host's stack, to go on at the next resume(). */
  void pause();
  /** On the fiber: back for the last time. */
  [[noreturn]] void leave();

 private:
  static void begin(Fiber* self);
  void arrived();

  struct Context;
  Context* context_;
  std::byte* stack_;
  Entry entry_ = nullptr;
  void* argument_ = nullptr;
  friend struct FiberEntry;
};

}  // namespace qe::emulation
