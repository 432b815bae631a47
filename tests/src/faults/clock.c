/* Preloaded into a program: shifts its wall clock by the milliseconds (64 bits, signed) in the file that CLOCK_OFFSET names, which
 * may change while the program runs. The monotonic clocks stay as they are. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *offset;

__attribute__((constructor)) static void begin(void)
{
	const char *file = getenv("CLOCK_OFFSET");
	int fd = file ? open(file, O_RDONLY | O_CLOEXEC) : -1;
	if (fd < 0)
		return;
	void *map = mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, fd, 0);
	if (map != MAP_FAILED)
		offset = map;
	close(fd);
}

int clock_gettime(clockid_t clock, struct timespec *at)
{
	int result = syscall(SYS_clock_gettime, clock, at);
	if (result || !offset || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE))
		return result;
	int64_t nanos = at->tv_nsec + (*offset % 1000) * 1000000;
	at->tv_sec += *offset / 1000;
	if (nanos < 0) {
		at->tv_sec--;
		nanos += 1000000000;
	} else if (nanos >= 1000000000) {
		at->tv_sec++;
		nanos -= 1000000000;
	}
	at->tv_nsec = nanos;
	return 0;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone)
{
	(void)zone;
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	at->tv_sec = now.tv_sec;
	at->tv_usec = now.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *to)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	if (to)
		*to = now.tv_sec;
	return now.tv_sec;
}
