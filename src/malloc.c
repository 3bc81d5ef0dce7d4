/*
 * Memory of large mail is given back when the mail has gone.
 *
 * glibc maps large blocks on their own and unmaps them when they are freed, but what is large it learns: with each block
 * that is freed the threshold grows, up to 32 MiB, and from then on such blocks come from its heaps, which stay as large as
 * they once had to be. Setting the threshold ends the learning (mallopt(3)). Rust can do that with unsafe code only, which
 * this crate forbids; so it is done here, before main.
 */

#include <malloc.h>

#ifdef __GLIBC__
__attribute__((constructor)) static void thresholds(void)
{
	/* As large as a message is that counts as large: see MemoryBudget::SMALL_CONTENT_OCTETS_MAX. */
	mallopt(M_MMAP_THRESHOLD, 256 * 1024);
	/* Free memory at the end of a heap: small mail takes it and gives it back all the time. */
	mallopt(M_TRIM_THRESHOLD, 1024 * 1024);
}
#endif
