// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * The limit of what a daemon could reach: waits for a kick, makes the ioctl, signals. It believes
 * all that is in the ring, serves one guest, and knows where each part of a request is.
 *
 * Inherits the guest's memory as fd 3, kick as 4 and call as 5. Started as a daemon, with six
 * arguments of which the second is the base path of its sockets, it listens on the first and does
 * nothing else: so long takes what is not the daemon's own.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/spi/spidev.h>
#include <linux/virtio_ring.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { MEMORY = 3, KICK = 4, CALL = 5 };

static char *memory;
static struct vring ring;
static int event_idx, device;
static uint32_t bufsiz;
static uint16_t next_avail, next_used, signalled;

static uint16_t load(uint16_t *index)
{
	return atomic_load_explicit((_Atomic uint16_t *)index, memory_order_acquire);
}

static int transfer(uint64_t tx, uint64_t rx, uint32_t len)
{
	uint32_t done, part;

	for (done = 0; done < len; done += part) {
		struct spi_ioc_transfer message = {
			.tx_buf = (uintptr_t)memory + tx + done,
			.rx_buf = (uintptr_t)memory + rx + done,
			.bits_per_word = 8,
		};

		part = len - done < bufsiz ? len - done : bufsiz;
		message.len = part;
		if (ioctl(device, SPI_IOC_MESSAGE(1), &message) < 0)
			return 2; /* TRANS_ERR */
	}
	return 0;
}

static void serve(void)
{
	uint16_t mask = ring.num - 1, head = ring.avail->ring[next_avail++ & mask];
	struct vring_desc *tx = &ring.desc[ring.desc[head].next];
	struct vring_desc *rx = &ring.desc[tx->next], *result = &ring.desc[rx->next];

	memory[result->addr] = transfer(tx->addr, rx->addr, tx->len);
	ring.used->ring[next_used++ & mask] = (struct vring_used_elem){ head, rx->len + 1 };
	atomic_store_explicit((_Atomic uint16_t *)&ring.used->idx, next_used, memory_order_release);
}

static int wants_signal(void)
{
	uint16_t old = signalled;

	signalled = next_used;
	if (event_idx)
		return vring_need_event(load(&vring_used_event(&ring)), next_used, old);
	return !(load(&ring.avail->flags) & VRING_AVAIL_F_NO_INTERRUPT);
}

static void drain(void)
{
	uint64_t one = 1;

	do {
		while (next_avail != load(&ring.avail->idx))
			serve();
		if (event_idx)
			atomic_store((_Atomic uint16_t *)&vring_avail_event(&ring), next_avail);
		atomic_thread_fence(memory_order_seq_cst);
	} while (next_avail != load(&ring.avail->idx));
	if (next_used != signalled && wants_signal() && write(CALL, &one, sizeof one) < 0)
		_exit(1);
}

static int only_listen(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	snprintf(address.sun_path, sizeof address.sun_path, "%s0", path);
	if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 1))
		return 71;
	pause();
	return 0;
}

int main(int argc, char **argv)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLET };
	int set;

	if (argc == 7)
		return only_listen(argv[2]);
	if (argc != 8)
		return 64;
	set = epoll_create1(0);
	bufsiz = atoi(argv[7]);
	event_idx = atoi(argv[6]);
	memory = mmap(NULL, atoi(argv[1]), PROT_READ | PROT_WRITE, MAP_SHARED, MEMORY, 0);
	device = open("/dev/spidev100.0", O_RDWR);
	if (memory == MAP_FAILED || device < 0 || epoll_ctl(set, EPOLL_CTL_ADD, KICK, &event))
		return 71;
	ring.num = atoi(argv[2]);
	ring.desc = (void *)(memory + atoi(argv[3]));
	ring.avail = (void *)(memory + atoi(argv[4]));
	ring.used = (void *)(memory + atoi(argv[5]));
	for (;;) {
		drain();
		/* Interrupted when strace comes. */
		if (epoll_wait(set, &event, 1, -1) < 0 && errno != EINTR)
			return 71;
	}
}
