// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* Preloaded into the daemon: counts allocations in a file that the test has mapped, too. */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);

static unsigned long ignored, *count = &ignored;

__attribute__((constructor)) static void open_count(void)
{
	int fd = open(getenv("ALLOCATIONS"), O_RDWR);
	void *page = mmap(NULL, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (page != MAP_FAILED)
		count = page;
}

void *malloc(size_t len)
{
	++*count;
	return __libc_malloc(len);
}

void *calloc(size_t n, size_t len)
{
	++*count;
	return __libc_calloc(n, len);
}

void *realloc(void *old, size_t len)
{
	++*count;
	return __libc_realloc(old, len);
}
