// SPDX-License-Identifier: (GPL-2.0 OR BSD-3-Clause)
/*
 * Sends SPI messages of any transfers through a spidev, as they stand on the command line.
 *
 *	spi_message DEVICE ITEM...
 *
 * Items are settings, transfers, and `/` between two messages, carried out in order:
 *	mode=N bits=N speed=HZ	the device's from now on, as in <linux/spi/spi.h>
 *	times=N			all messages that follow, N times over
 *	show			prints the device's mode, bits and speed
 *	refused			all messages that follow must fail
 *	w=HEX r=LEN x=HEX	a transfer that writes, reads, does both; what was read is printed, a line a message
 *	W=LEN R=LEN X=LEN	the same with a pattern of bytes (`W=LEN:SEED` for another one): what is read must be it
 * Behind a transfer, separated by commas: `keep` (its cs_change), `speed=HZ`, `bits=N`, `delay=USECS`.
 *
 * The exit code is 0 if all went well, 1 if a system call failed, 2 if other bytes were read than expected or a message
 * that must fail did not.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <linux/spi/spidev.h>

#define MAX_TRANSFERS 511

static int device;
static const char *name;
static struct spi_ioc_transfer transfers[MAX_TRANSFERS];
static const char *kinds[MAX_TRANSFERS];
static unsigned int seeds[MAX_TRANSFERS];
static size_t count;
static int exit_code;
static int refused;

static void give_up(const char *what)
{
	printf("spi_message: %s: %s: %s\n", name, what, strerror(errno));
	exit(1);
}

static void usage(const char *item)
{
	printf("spi_message: what is `%s`?\n", item);
	exit(64);
}

static uint8_t pattern(size_t at, unsigned int seed)
{
	return at * 31 + (at >> 8) * 7 + (at >> 16) + seed;
}

static uint8_t *bytes(uint64_t pointer)
{
	return (uint8_t *)(uintptr_t)pointer;
}

static void set(unsigned long request, void *value, const char *what)
{
	if (ioctl(device, request, value) < 0)
		give_up(what);
}

static void show(void)
{
	uint32_t mode, speed;
	uint8_t bits;

	set(SPI_IOC_RD_MODE32, &mode, "reading the mode");
	set(SPI_IOC_RD_BITS_PER_WORD, &bits, "reading the word size");
	set(SPI_IOC_RD_MAX_SPEED_HZ, &speed, "reading the speed");
	printf("mode=%u bits=%u speed=%u\n", mode, bits, speed);
}

/* One transfer: `KIND=VALUE[,OPTION]...`. */
static void add_transfer(const char *item)
{
	struct spi_ioc_transfer *transfer = &transfers[count];
	const char *value = item + 2, *option;
	size_t i, len, hex = strspn(value, "0123456789abcdefABCDEF");
	char *end;

	if (count == MAX_TRANSFERS || !item[0] || !strchr("wrxWRX", item[0]) || item[1] != '=')
		usage(item);
	memset(transfer, 0, sizeof(*transfer));
	kinds[count] = item;
	seeds[count] = 1;
	if (strchr("wx", item[0])) {
		len = hex / 2;
		end = (char *)value + hex;
	} else {
		len = strtoul(value, &end, 0);
		if (*end == ':')
			seeds[count] = strtoul(end + 1, &end, 0);
	}
	transfer->len = len;
	if (strchr("wxWX", item[0]))
		transfer->tx_buf = (uintptr_t)malloc(len + 1);
	if (strchr("rxRX", item[0]))
		transfer->rx_buf = (uintptr_t)malloc(len + 1);
	for (i = 0; i < len && transfer->tx_buf; i++) {
		unsigned int byte = pattern(i, seeds[count]);

		if (strchr("wx", item[0]))
			sscanf(value + 2 * i, "%2x", &byte);
		bytes(transfer->tx_buf)[i] = byte;
	}
	for (option = end; *option == ','; option += strcspn(option, ",")) {
		option++;
		if (!strncmp(option, "keep", 4))
			transfer->cs_change = 1;
		else if (!strncmp(option, "speed=", 6))
			transfer->speed_hz = strtoul(option + 6, NULL, 0);
		else if (!strncmp(option, "bits=", 5))
			transfer->bits_per_word = strtoul(option + 5, NULL, 0);
		else if (!strncmp(option, "delay=", 6))
			transfer->delay_usecs = strtoul(option + 6, NULL, 0);
		else
			usage(item);
	}
	if (*option)
		usage(item);
	count++;
}

static void check(size_t at)
{
	const struct spi_ioc_transfer *transfer = &transfers[at];
	size_t i;

	if (strchr("rx", kinds[at][0])) {
		for (i = 0; i < transfer->len; i++)
			printf("%02x", bytes(transfer->rx_buf)[i]);
	} else if (strchr("RX", kinds[at][0])) {
		for (i = 0; i < transfer->len; i++) {
			if (bytes(transfer->rx_buf)[i] == pattern(i, seeds[at]))
				continue;
			printf("spi_message: %s: byte %zu of %s is %02x\n", name, i, kinds[at], bytes(transfer->rx_buf)[i]);
			exit_code = 2;
			break;
		}
	}
}

static void send_message(void)
{
	size_t i;
	int line = 0;

	if (!count)
		return;
	for (i = 0; i < count; i++) {
		if (transfers[i].rx_buf)
			memset(bytes(transfers[i].rx_buf), 0x5a, transfers[i].len);
		line |= kinds[i][0] == 'r' || kinds[i][0] == 'x';
	}
	if (ioctl(device, SPI_IOC_MESSAGE(count), transfers) >= 0) {
		for (i = 0; i < count; i++)
			check(i);
		if (line)
			putchar('\n');
		if (refused) {
			printf("spi_message: %s: a message with %s was not refused\n", name, kinds[0]);
			exit_code = 2;
		}
	} else if (!refused) {
		give_up("message");
	}
	for (i = 0; i < count; i++) {
		free(bytes(transfers[i].tx_buf));
		free(bytes(transfers[i].rx_buf));
	}
	count = 0;
}

int main(int argc, char **argv)
{
	unsigned long times = 1;
	int first = 2, i;

	if (argc < 3)
		usage("");
	name = argv[1];
	device = open(name, O_RDWR);
	if (device < 0)
		give_up("open");
	for (; times; times--) {
		for (i = first; i < argc; i++) {
			const char *item = argv[i];
			uint32_t value = strchr(item, '=') ? strtoul(strchr(item, '=') + 1, NULL, 0) : 0;

			if (!strcmp(item, "/"))
				send_message();
			else if (!strcmp(item, "show"))
				show();
			else if (!strcmp(item, "refused"))
				refused = 1;
			else if (!strncmp(item, "mode=", 5))
				set(SPI_IOC_WR_MODE32, &value, item);
			else if (!strncmp(item, "bits=", 5))
				set(SPI_IOC_WR_BITS_PER_WORD, &(uint8_t){ value }, item);
			else if (!strncmp(item, "speed=", 6))
				set(SPI_IOC_WR_MAX_SPEED_HZ, &value, item);
			else if (!strncmp(item, "times=", 6)) {
				times = value;
				first = i + 1;
			} else
				add_transfer(item);
		}
		send_message();
	}
	return exit_code;
}
