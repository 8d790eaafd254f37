// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * A spidev that is not there. Preloaded into a program, it answers open() and ioctl() for
 * /dev/spidevX.Y by the rules of drivers/spi/spidev.c, with a controller that loops back.
 *
 * Each ioctl still goes to the kernel first, where it fails on the memory file that stands in for
 * the device: so it costs a system call, is counted as one, and passes the program's own filter.
 * Behind open() nothing else is asked of the kernel, and no fd is kept but the program's own.
 *
 * With FAKE_WIRE set, a message also takes the time that it takes on the wire: the caller sleeps, as
 * it does for a controller, by system calls that the daemon's filter allows, and each device has two
 * more fds for that.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/spi/spidev.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define DEVICES "/dev/spidev"
#define BUFSIZ_FILE "/sys/module/spidev/parameters/bufsiz"
#define DEFAULT_BUFSIZ 4096u
/* As x86_64's ARCH_DMA_MINALIGN. */
#define ALIGNED(len) (((unsigned long)(len) + 7) & ~7ul)
/* What the controller can do; lanes that it does not have are dropped without an error. */
#define MODES (SPI_CPHA | SPI_CPOL | SPI_CS_HIGH | SPI_LSB_FIRST | SPI_LOOP)
#define DROPPED (SPI_TX_DUAL | SPI_TX_QUAD | SPI_TX_OCTAL | SPI_RX_DUAL | SPI_RX_QUAD | SPI_RX_OCTAL)
/* So fast that no program has to reckon with time on the wire: there is none. */
#define SPEED_HZ 1000000000
#define MAX_FD 4096
#define MAX_BUSES 256
/* Shorter than this, a sleep takes longer than it is told to: the caller spins. */
#define SPIN_NS 20000
#define SECOND_NS 1000000000ul

static struct device {
	int is_open;
	__u32 mode, speed_hz;
	__u8 bits;
	/* How a caller sleeps while a message is on the wire. */
	int timer, epoll;
	unsigned int bus;
} devices[MAX_FD];

/* A controller carries out one message after the other, whoever sends them. */
static pthread_mutex_t buses[MAX_BUSES];

/* Whoever started us may be killed: then nobody else would end this program. */
__attribute__((constructor)) static void end_with_parent(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static unsigned long bufsiz(void)
{
	static unsigned long cached;
	const char *text;

	if (!cached) {
		text = getenv("FAKE_BUFSIZ");
		cached = text ? strtoul(text, NULL, 10) : DEFAULT_BUFSIZ;
	}
	return cached;
}

static int fail(int error)
{
	errno = error;
	return -1;
}

static int memory_file(int flags)
{
	return memfd_create("spidev", flags & O_CLOEXEC ? MFD_CLOEXEC : 0);
}

static int make_wire(struct device *device)
{
	struct epoll_event event = { .events = EPOLLIN };

	device->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
	device->epoll = epoll_create1(EPOLL_CLOEXEC);
	return epoll_ctl(device->epoll, EPOLL_CTL_ADD, device->timer, &event);
}

static int open_device(const char *path, int flags)
{
	int fd = memory_file(flags);

	if (fd < 0)
		return -1;
	if (fd >= MAX_FD) {
		close(fd);
		return fail(EMFILE);
	}
	/* Known before the filter is on, so that no later message has to ask. */
	bufsiz();
	devices[fd] = (struct device){
		.is_open = 1, .speed_hz = SPEED_HZ, .bits = 8,
		.timer = -1, .bus = strtoul(path + strlen(DEVICES), NULL, 10) % MAX_BUSES,
	};
	if (getenv("FAKE_WIRE") && make_wire(&devices[fd]) < 0)
		return -1;
	return fd;
}

static int open_bufsiz(int flags)
{
	const char *text = getenv("FAKE_BUFSIZ");
	int fd = memory_file(flags);

	if (fd < 0)
		return -1;
	if (!text)
		text = "4096";
	if (pwrite(fd, text, strlen(text), 0) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

static int open_any(int directory, const char *path, int flags, mode_t mode)
{
	int fd;

	if (!strncmp(path, DEVICES, strlen(DEVICES)))
		return open_device(path, flags);
	if (!strcmp(path, BUFSIZ_FILE))
		return open_bufsiz(flags);
	fd = syscall(SYS_openat, directory, path, flags, mode);
	/* The number may have been a device's that was closed since. */
	if (fd >= 0 && fd < MAX_FD)
		devices[fd].is_open = 0;
	return fd;
}

static mode_t mode_argument(int flags, va_list arguments)
{
	return flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
}

#define OPEN(name, parameters, directory, last)                                 \
	int name parameters                                                     \
	{                                                                       \
		va_list arguments;                                              \
		mode_t mode;                                                    \
                                                                                \
		va_start(arguments, last);                                      \
		mode = mode_argument(flags, arguments);                         \
		va_end(arguments);                                              \
		return open_any(directory, path, flags, mode);                  \
	}

OPEN(open, (const char *path, int flags, ...), AT_FDCWD, flags)
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD, flags)
OPEN(openat, (int directory, const char *path, int flags, ...), directory, flags)
OPEN(openat64, (int directory, const char *path, int flags, ...), directory, flags)

static int set_mode(struct device *device, __u32 mode)
{
	mode &= ~DROPPED;
	if (mode & ~MODES)
		return fail(EINVAL);
	device->mode = mode;
	return 0;
}

static int set_bits(struct device *device, __u8 bits)
{
	if (bits != 0 && bits != 8 && bits != 16 && bits != 32)
		return fail(EINVAL);
	device->bits = bits ? bits : 8;
	return 0;
}

static int set_speed(struct device *device, __u32 speed_hz)
{
	if (!speed_hz)
		return fail(EINVAL);
	device->speed_hz = speed_hz;
	return 0;
}

static unsigned int word_len(const struct device *device, const struct spi_ioc_transfer *transfer)
{
	unsigned int bits = transfer->bits_per_word ? transfer->bits_per_word : device->bits;

	return bits <= 8 ? 1 : bits <= 16 ? 2 : 4;
}

/* All is checked before anything is copied, as spidev does. */
static int check(const struct device *device, const struct spi_ioc_transfer *transfers,
		 unsigned int count)
{
	unsigned long total = 0, tx_total = 0, rx_total = 0;
	unsigned int i;

	for (i = 0; i < count; i++) {
		total += transfers[i].len;
		tx_total += transfers[i].tx_buf ? ALIGNED(transfers[i].len) : 0;
		rx_total += transfers[i].rx_buf ? ALIGNED(transfers[i].len) : 0;
		if (total > INT_MAX || tx_total > bufsiz() || rx_total > bufsiz())
			return fail(EMSGSIZE);
		if (transfers[i].len % word_len(device, &transfers[i]))
			return fail(EINVAL);
	}
	return total;
}

static unsigned long wire_ns(const struct device *device, const struct spi_ioc_transfer *transfer)
{
	unsigned long bits = transfer->bits_per_word ? transfer->bits_per_word : device->bits;
	unsigned long speed = transfer->speed_hz ? transfer->speed_hz : device->speed_hz;
	unsigned long words = transfer->len / word_len(device, transfer);

	return words * bits * SECOND_NS / speed + transfer->delay_usecs * 1000ul;
}

static unsigned long now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * SECOND_NS + now.tv_nsec;
}

static void be_on_the_wire(struct device *device, unsigned long ns)
{
	struct itimerspec at = { .it_value = { ns / SECOND_NS, ns % SECOND_NS } };
	unsigned long end = now_ns() + ns;
	struct epoll_event event;

	pthread_mutex_lock(&buses[device->bus]);
	if (ns < SPIN_NS)
		while (now_ns() < end)
			;
	else if (!timerfd_settime(device->timer, 0, &at, NULL))
		while (epoll_wait(device->epoll, &event, 1, -1) < 0 && errno == EINTR)
			;
	pthread_mutex_unlock(&buses[device->bus]);
}

static int message(struct device *device, const struct spi_ioc_transfer *transfers,
		   unsigned int count)
{
	int total = check(device, transfers, count);
	unsigned long ns = 0;
	unsigned int i;

	for (i = 0; total >= 0 && i < count; i++) {
		void *rx = (void *)transfers[i].rx_buf;

		if (rx && transfers[i].tx_buf)
			memcpy(rx, (const void *)transfers[i].tx_buf, transfers[i].len);
		else if (rx)
			memset(rx, 0, transfers[i].len);
		ns += wire_ns(device, &transfers[i]);
	}
	if (total >= 0 && device->timer >= 0)
		be_on_the_wire(device, ns);
	return total;
}

static int answer(struct device *device, unsigned long request, void *argument)
{
	switch ((__u32)request) {
	case SPI_IOC_RD_MODE32:
		*(__u32 *)argument = device->mode;
		return 0;
	case SPI_IOC_WR_MODE32:
		return set_mode(device, *(__u32 *)argument);
	case SPI_IOC_RD_BITS_PER_WORD:
		*(__u8 *)argument = device->bits;
		return 0;
	case SPI_IOC_WR_BITS_PER_WORD:
		return set_bits(device, *(__u8 *)argument);
	case SPI_IOC_RD_MAX_SPEED_HZ:
		*(__u32 *)argument = device->speed_hz;
		return 0;
	case SPI_IOC_WR_MAX_SPEED_HZ:
		return set_speed(device, *(__u32 *)argument);
	}
	if (_IOC_DIR(request) != _IOC_WRITE || _IOC_NR(request))
		return fail(ENOTTY);
	return message(device, argument, _IOC_SIZE(request) / sizeof(struct spi_ioc_transfer));
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list arguments;
	void *argument;
	int result;

	va_start(arguments, request);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	result = syscall(SYS_ioctl, fd, request, argument);
	if (fd < 0 || fd >= MAX_FD || !devices[fd].is_open || _IOC_TYPE(request) != SPI_IOC_MAGIC)
		return result;
	return answer(&devices[fd], request, argument);
}
