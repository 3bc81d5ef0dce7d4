/* A clock that goes SLOW times slower for one program, by LD_PRELOAD: what a program does by the second costs next to
   nothing then, and what is counted is what its work costs. It knows the ways in which the relay asks for the time and
   waits: clock_gettime, epoll_wait, and the futex calls of Rust's standard library (absolute, on the monotonic clock). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>

#define NANOS 1000000000LL

static int (*real_clock)(clockid_t, struct timespec *);
static int (*real_epoll)(int, struct epoll_event *, int, int);
static long (*real_syscall)(long, long, long, long, long, long, long);
static long long began[2]; /* CLOCK_REALTIME and CLOCK_MONOTONIC at the start */

static long long nanos(const struct timespec *at) { return at->tv_sec * NANOS + at->tv_nsec; }

static struct timespec timespec(long long nanos) {
  return (struct timespec){.tv_sec = nanos / NANOS, .tv_nsec = nanos % NANOS};
}

__attribute__((constructor)) static void begin(void) {
  real_clock = dlsym(RTLD_NEXT, "clock_gettime");
  real_epoll = dlsym(RTLD_NEXT, "epoll_wait");
  real_syscall = dlsym(RTLD_NEXT, "syscall");
  for (int clock = 0; clock < 2; clock++) {
    struct timespec now;
    real_clock(clock, &now);
    began[clock] = nanos(&now);
  }
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  if (!real_clock) begin();
  int result = real_clock(clock, now);
  if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_MONOTONIC))
    *now = timespec(began[clock] + (nanos(now) - began[clock]) / SLOW);
  return result;
}

int epoll_wait(int epoll, struct epoll_event *events, int size, int timeout) {
  if (timeout > 0) timeout = timeout < INT_MAX / SLOW ? timeout * SLOW : INT_MAX;
  return real_epoll(epoll, events, size, timeout);
}

long syscall(long number, long a, long b, long c, long d, long e, long f) {
  if (!real_syscall) begin();
  struct timespec until;
  if (number == SYS_futex && (b & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET && d) {
    until = timespec(began[1] + (nanos((struct timespec *)d) - began[1]) * SLOW);
    d = (long)&until;
  }
  return real_syscall(number, a, b, c, d, e, f);
}
