#include "emulation/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if (defined(__x86_64__) || defined(__aarch64__)) && defined(__ELF__)
#define QE_OWN_SWITCH 1
#else
#define QE_OWN_SWITCH 0
#include <ucontext.h>
#endif

#if QE_OWN_SWITCH
extern "C" {
/** Saves the caller's registers on its stack, stores that stack pointer in *save and goes on where `load` was saved. */
void qe_fiber_switch(void** save, void* load) __attribute__((visibility("hidden")));
void qe_fiber_first() __attribute__((visibility("hidden")));
}

#if defined(__x86_64__)
asm(R"(
.text
.globl qe_fiber_switch
.hidden qe_fiber_switch
.type qe_fiber_switch, @function
qe_fiber_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size qe_fiber_switch, .-qe_fiber_switch
.globl qe_fiber_first
.hidden qe_fiber_first
.type qe_fiber_first, @function
qe_fiber_first:
  movq %rbx, %rdi
  callq *%rbp
  ud2
.size qe_fiber_first, .-qe_fiber_first
)");
#else
asm(R"(
.text
.globl qe_fiber_switch
.hidden qe_fiber_switch
.type qe_fiber_switch, %function
qe_fiber_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x2, sp
  str x2, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size qe_fiber_switch, .-qe_fiber_switch
.globl qe_fiber_first
.hidden qe_fiber_first
.type qe_fiber_first, %function
qe_fiber_first:
  mov x0, x19
  blr x20
  brk #1
.size qe_fiber_first, .-qe_fiber_first
)");
#endif
#endif

namespace qe::emulation {
namespace {
constexpr std::size_t kStackBytes = 128 * 1024;
}

struct Fiber::Context {
#if QE_OWN_SWITCH
  void* fiber = nullptr;  // stack pointers
  void* host = nullptr;
#else
  ucontext_t fiber, host;
#endif
  void* fake_stack = nullptr;  // AddressSanitizer's, of the fiber while it does not run
  void* host_fake_stack = nullptr;
  const void* host_bottom = nullptr;
  std::size_t host_size = 0;
  bool left = false;  // the last run ended in leave()
};

/** Where a fresh stack begins; a friend, since the ucontext form passes the address in two words. */
struct FiberEntry {
  static void run(Fiber* fiber) { Fiber::begin(fiber); }
#if !QE_OWN_SWITCH
  static void run_words(unsigned low, unsigned high) {
    Fiber::begin(reinterpret_cast<Fiber*>(std::uintptr_t{low} | std::uintptr_t{high} << 16 << 16));
  }
#endif
};

Fiber::Fiber() : context_(new Context) {
  void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    delete context_;
    throw std::bad_alloc();
  }
  stack_ = static_cast<std::byte*>(memory);
}

Fiber::~Fiber() {
  munmap(stack_, kStackBytes);
  delete context_;
}

void Fiber::start(Entry entry, void* argument) {
  entry_ = entry, argument_ = argument;
#if defined(__SANITIZE_ADDRESS__)
  // Frames that returned took their red zones along; leave()'s few did not, and an abandoned fiber's none.
  const std::size_t marked = context_->left ? 4096 : kStackBytes;
  __asan_unpoison_memory_region(stack_ + kStackBytes - marked, marked);
  context_->fake_stack = nullptr;
#endif
  context_->left = false;
#if QE_OWN_SWITCH
  auto* top = reinterpret_cast<void**>(stack_ + kStackBytes);  // 16-byte aligned, as every mapping's end is
  auto* first = reinterpret_cast<void*>(&qe_fiber_first);
  auto* run = reinterpret_cast<void*>(&FiberEntry::run);
#if defined(__x86_64__)
  void** at = top - 9;  // r15 r14 r13 r12 rbx rbp, return address, padding: 16-byte aligned where `first` begins
  for (int i = 0; i < 9; ++i) at[i] = nullptr;
  at[4] = this, at[5] = run, at[6] = first;
#else
  void** at = top - 20;
  for (int i = 0; i < 20; ++i) at[i] = nullptr;
  at[0] = this, at[1] = run, at[11] = first;
#endif
  context_->fiber = at;
#else
  getcontext(&context_->fiber);
  context_->fiber.uc_stack.ss_sp = stack_;
  context_->fiber.uc_stack.ss_size = kStackBytes;
  context_->fiber.uc_link = nullptr;
  const auto word = reinterpret_cast<std::uintptr_t>(this);
  makecontext(&context_->fiber, reinterpret_cast<void (*)()>(&FiberEntry::run_words), 2,
              static_cast<unsigned>(word), static_cast<unsigned>(word >> 16 >> 16));
#endif
}

void Fiber::arrived() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(context_->fake_stack, &context_->host_bottom, &context_->host_size);
#endif
}

void Fiber::begin(Fiber* self) {
  self->arrived();
  self->entry_(self->argument_);
  std::abort();  // an entry ends in leave()
}

void Fiber::resume() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&context_->host_fake_stack, stack_, kStackBytes);
#endif
#if QE_OWN_SWITCH
  qe_fiber_switch(&context_->host, context_->fiber);
#else
  swapcontext(&context_->host, &context_->fiber);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(context_->host_fake_stack, nullptr, nullptr);
#endif
}

void Fiber::pause() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&context_->fake_stack, context_->host_bottom, context_->host_size);
#endif
#if QE_OWN_SWITCH
  qe_fiber_switch(&context_->fiber, context_->host);
#else
  swapcontext(&context_->fiber, &context_->host);
#endif
  arrived();
}

void Fiber::leave() {
  context_->left = true;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(nullptr, context_->host_bottom, context_->host_size);  // null: the stack is done with
#endif
#if QE_OWN_SWITCH
  qe_fiber_switch(&context_->fiber, context_->host);
#else
  swapcontext(&context_->fiber, &context_->host);
#endif
  std::abort();
}

}  // namespace qe::emulation
