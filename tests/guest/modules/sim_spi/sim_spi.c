// SPDX-License-Identifier: (GPL-2.0 OR BSD-3-Clause)
/*
 * Simulated SPI controllers that remember what was done to their lines.
 *
 * Each drives its chip selects the ordinary way: the SPI core decides and calls set_cs(). Behind each chip select sits
 * a simulated device, declared so that the kernel's spidev binds it. On the controllers that `boards` has 0 for:
 *
 *	0  loopback	sends back what it gets, and 0xff where nothing is sent
 *	1  memory	2 MiB: 0x02, 3 bytes of address, data writes; 0x03, 3 bytes of address, then reads. All of that
 *			within one assertion of its chip select; released, it forgets the command
 *	2  loopback	like 0, for trials with `fail`
 *
 * On those that it has 1 for: 0 flash, 1 SRAM, 2 EEPROM, 3 flash with large sectors, 4 TPM, 5 flash that needs addresses of
 * four bytes (chips.h).
 *
 * A device answers by its line, not by what the core believes: the line's level counts, and it is active at low level
 * whatever SPI_CS_HIGH says. In debugfs, sim_spi/spiN/:
 *
 *	state	one line a chip select, one for the violations; `key=value` throughout
 *	reset	write anything: the counts of all chip selects start anew; lines and violations stay as they are
 *	fail	write `CHIP_SELECT transfer|message ERRNO SKIP COUNT`: after SKIP further ones, COUNT transfers fail on
 *		the wire, or COUNT messages are refused before chip select is touched; COUNT 0 takes it back
 *	suspend	write 1 and the controller sleeps, 0 and it wakes up
 *	csN	what the memory of the chip behind chip select N holds
 *
 * A violation is what no correct user of a bus brings about: two chip selects asserted at once (two_selected), a
 * transfer while its chip select is not (unselected), another mode (mode_changed), or another clock or word size
 * (clock_changed) within one assertion.
 */
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/device/faux.h>
#include <linux/math64.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/seq_file.h>
#include <linux/spi/spi.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include "chips.h"

#define MAX_CONTROLLERS 4
#define MAX_CHIP_SELECTS 6

static unsigned int controllers = 1;
module_param(controllers, uint, 0444);
MODULE_PARM_DESC(controllers, "how many, 1 to 4");

static unsigned int mode_bits[MAX_CONTROLLERS] = {
	[0 ... MAX_CONTROLLERS - 1] = SPI_MODE_X_MASK | SPI_CS_HIGH | SPI_LSB_FIRST | SPI_LOOP,
};
module_param_array(mode_bits, uint, NULL, 0444);
MODULE_PARM_DESC(mode_bits, "what each controller can do, as in <linux/spi/spi.h>");

static unsigned int word_sizes[MAX_CONTROLLERS] = {
	[0 ... MAX_CONTROLLERS - 1] = SPI_BPW_RANGE_MASK(4, 32),
};
module_param_array(word_sizes, uint, NULL, 0444);
MODULE_PARM_DESC(word_sizes, "each controller's bits_per_word_mask");

static unsigned int max_speed_hz[MAX_CONTROLLERS] = { [0 ... MAX_CONTROLLERS - 1] = 100000000 };
module_param_array(max_speed_hz, uint, NULL, 0444);

static unsigned int min_speed_hz[MAX_CONTROLLERS];
module_param_array(min_speed_hz, uint, NULL, 0444);

static unsigned int device_speed_hz = 50000000;
module_param(device_speed_hz, uint, 0444);
MODULE_PARM_DESC(device_speed_hz, "speed limit of every device");

static unsigned int boards[MAX_CONTROLLERS];
module_param_array(boards, uint, NULL, 0444);
MODULE_PARM_DESC(boards, "what is behind each controller's chip selects");

/* No chip is a loopback. */
static const struct board {
	unsigned int chip_selects;
	const struct chip *chips[MAX_CHIP_SELECTS];
} all_boards[] = {
	{ 3, { NULL, &memory_2m, NULL } },
	{ 6, { &nor_w25q64, &sram_23k256, &eeprom_at25256, &nor_m25p16, &tpm_slb9670, &nor_w25q256 } },
};

struct failure {
	bool early;
	int error;
	unsigned int skip;
	unsigned int count;
};

/* What `reset` clears. */
struct counts {
	unsigned int edges, set_cs, setups, messages, transfers;
	u64 bytes, dual_bytes, quad_bytes;
};

struct line {
	bool high;
	/* Of the assertion in progress, or else the last one. */
	u32 mode;
	u32 speed_hz;
	u8 bits;
	bool clocked;
	struct failure failure;
	struct counts counts;
	/* Of no chip: a loopback. */
	struct chip_state chip;
	struct debugfs_blob_wrapper contents;
};

struct bus {
	struct faux_device *parent;
	struct spi_controller *controller;
	/* Held around everything but the time that a transfer takes. */
	struct mutex lock;
	unsigned int chip_selects;
	struct line lines[MAX_CHIP_SELECTS];
	struct {
		unsigned int two_selected, unselected, mode_changed, clock_changed;
	} violations;
	struct dentry *directory;
};

static struct bus buses[MAX_CONTROLLERS];
static struct dentry *top;

static struct bus *bus_of(struct spi_controller *controller)
{
	return *(struct bus **)spi_controller_get_devdata(controller);
}

static struct line *line_of(struct spi_device *spi)
{
	return &bus_of(spi->controller)->lines[spi_get_chipselect(spi, 0)];
}

static bool asserted(const struct line *line)
{
	return !line->high;
}

static void sim_set_cs(struct spi_device *spi, bool high)
{
	struct bus *bus = bus_of(spi->controller);
	struct line *line = line_of(spi);
	unsigned int i;

	guard(mutex)(&bus->lock);
	line->counts.set_cs++;
	if (line->high == high)
		return;
	line->high = high;
	line->counts.edges++;
	if (!asserted(line)) {
		if (line->chip.chip)
			end_command(&line->chip);
		return;
	}
	begin_command(&line->chip);
	line->mode = spi->mode;
	line->clocked = false;
	for (i = 0; i < bus->chip_selects; i++)
		if (&bus->lines[i] != line && asserted(&bus->lines[i]))
			bus->violations.two_selected++;
}

static int sim_setup(struct spi_device *spi)
{
	struct bus *bus = bus_of(spi->controller);
	struct line *line = line_of(spi);

	guard(mutex)(&bus->lock);
	line->counts.setups++;
	if (asserted(line) && spi->mode != line->mode)
		bus->violations.mode_changed++;
	return 0;
}

/* Whether it is this one's turn to fail. */
static bool fails(struct failure *failure, bool early)
{
	if (!failure->count || failure->early != early)
		return false;
	if (failure->skip) {
		failure->skip--;
		return false;
	}
	failure->count--;
	return true;
}

static int sim_prepare_message(struct spi_controller *controller, struct spi_message *message)
{
	struct bus *bus = bus_of(controller);
	struct line *line = line_of(message->spi);

	guard(mutex)(&bus->lock);
	if (fails(&line->failure, true))
		return -line->failure.error;
	line->counts.messages++;
	return 0;
}

static void exchange(struct line *line, const u8 *tx, u8 *rx, unsigned int len, u8 lanes)
{
	if (line->chip.chip && !(line->mode & SPI_LOOP)) {
		exchange_with_chip(&line->chip, tx, rx, len, lanes);
	} else if (rx && tx) {
		memcpy(rx, tx, len);
	} else if (rx) {
		memset(rx, 0xff, len);
	}
}

/* As long as it would take on a wire. */
static void take_time(const struct spi_transfer *xfer)
{
	u64 ns = div_u64((u64)xfer->len * 8 * NSEC_PER_SEC, xfer->speed_hz);
	u64 us = div_u64(ns, NSEC_PER_USEC);

	if (us >= 20)
		usleep_range(us + 1, us + 1 + us / 16);
	else
		ndelay(ns);
}

static int sim_transfer_one(struct spi_controller *controller, struct spi_device *spi, struct spi_transfer *xfer)
{
	struct bus *bus = bus_of(controller);
	struct line *line = line_of(spi);
	u8 lanes = max(xfer->rx_buf ? xfer->rx_nbits : xfer->tx_nbits, 1);

	take_time(xfer);
	guard(mutex)(&bus->lock);
	if (fails(&line->failure, false))
		return -line->failure.error;
	line->counts.transfers++;
	line->counts.bytes += xfer->len;
	line->counts.dual_bytes += lanes == 2 ? xfer->len : 0;
	line->counts.quad_bytes += lanes == 4 ? xfer->len : 0;
	if (!asserted(line)) {
		bus->violations.unselected++;
		return 0;
	}
	if (spi->mode != line->mode)
		bus->violations.mode_changed++;
	if (line->clocked && (line->speed_hz != xfer->speed_hz || line->bits != xfer->bits_per_word))
		bus->violations.clock_changed++;
	line->clocked = true;
	line->speed_hz = xfer->speed_hz;
	line->bits = xfer->bits_per_word;
	exchange(line, xfer->tx_buf, xfer->rx_buf, xfer->len, lanes);
	return 0;
}

static int state_show(struct seq_file *file, void *unused)
{
	struct bus *bus = file->private;
	unsigned int i;

	guard(mutex)(&bus->lock);
	for (i = 0; i < bus->chip_selects; i++) {
		const struct line *line = &bus->lines[i];
		const struct counts *counts = &line->counts;
		const struct chip_counts *chip = &line->chip.counts;

		seq_printf(file, "cs=%u peer=%s asserted=%d edges=%u set_cs=%u setups=%u messages=%u transfers=%u bytes=%llu dual=%llu quad=%llu mode=%u speed_hz=%u bits=%u",
			   i, line->chip.chip ? line->chip.chip->name : "loopback", asserted(line), counts->edges,
			   counts->set_cs, counts->setups, counts->messages, counts->transfers, counts->bytes,
			   counts->dual_bytes, counts->quad_bytes, line->mode, line->speed_hz, line->bits);
		if (line->chip.chip)
			seq_printf(file, " commands=%u cut=%u wrong_lanes=%u unknown=%u opcode=%02x ignored=%u changes=%u status=%02x%02x%02x asleep=%d four_byte=%d",
				   chip->commands, chip->cut, chip->wrong_lanes, chip->unknown, chip->opcode, chip->ignored,
				   chip->changes, line->chip.status[1], line->chip.status[2], line->chip.status[3],
				   line->chip.asleep, line->chip.four_byte);
		seq_putc(file, '\n');
	}
	seq_printf(file, "cs=any two_selected=%u unselected=%u mode_changed=%u clock_changed=%u\n",
		   bus->violations.two_selected, bus->violations.unselected, bus->violations.mode_changed,
		   bus->violations.clock_changed);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(state);

static ssize_t reset_write(struct file *file, const char __user *text, size_t len, loff_t *at)
{
	struct bus *bus = file->private_data;
	unsigned int i;

	guard(mutex)(&bus->lock);
	for (i = 0; i < bus->chip_selects; i++) {
		memset(&bus->lines[i].counts, 0, sizeof(bus->lines[i].counts));
		memset(&bus->lines[i].chip.counts, 0, sizeof(bus->lines[i].chip.counts));
	}
	return len;
}

static const struct file_operations reset_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.write = reset_write,
};

static ssize_t fail_write(struct file *file, const char __user *text, size_t len, loff_t *at)
{
	struct bus *bus = file->private_data;
	struct failure failure = { };
	unsigned int chip_select;
	char when[16];
	char line[64] = { };

	if (len >= sizeof(line))
		return -EINVAL;
	if (copy_from_user(line, text, len))
		return -EFAULT;
	if (sscanf(line, "%u %15s %d %u %u", &chip_select, when, &failure.error, &failure.skip, &failure.count) != 5 ||
	    chip_select >= bus->chip_selects || failure.error <= 0 || failure.error > MAX_ERRNO)
		return -EINVAL;
	failure.early = !strcmp(when, "message");
	if (!failure.early && strcmp(when, "transfer"))
		return -EINVAL;
	guard(mutex)(&bus->lock);
	bus->lines[chip_select].failure = failure;
	return len;
}

static const struct file_operations fail_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.write = fail_write,
};

static int suspend_set(void *data, u64 value)
{
	struct bus *bus = data;

	return value ? spi_controller_suspend(bus->controller) : spi_controller_resume(bus->controller);
}
DEFINE_DEBUGFS_ATTRIBUTE(suspend_fops, NULL, suspend_set, "%llu\n");

static void remove_bus(struct bus *bus)
{
	unsigned int i;

	debugfs_remove(bus->directory);
	if (bus->controller)
		spi_unregister_controller(bus->controller);
	if (bus->parent)
		faux_device_destroy(bus->parent);
	for (i = 0; i < bus->chip_selects; i++)
		vfree(bus->lines[i].chip.memory);
}

static int add_chips(struct bus *bus, const struct board *board)
{
	unsigned int i;

	bus->chip_selects = board->chip_selects;
	for (i = 0; i < board->chip_selects; i++) {
		const struct chip *chip = board->chips[i];
		struct line *line = &bus->lines[i];

		line->high = true;
		line->chip.chip = chip;
		if (!chip || chip == &tpm_slb9670)
			continue;
		line->chip.memory = vzalloc(chip->size);
		if (!line->chip.memory)
			return -ENOMEM;
		if (chip->page)
			memset(line->chip.memory, 0xff, chip->size);
		line->contents = (struct debugfs_blob_wrapper){ line->chip.memory, chip->size };
	}
	return 0;
}

static int add_bus(unsigned int number)
{
	struct spi_board_info info = { .modalias = "dh2228fv", .max_speed_hz = device_speed_hz };
	struct bus *bus = &buses[number];
	struct spi_controller *controller;
	char name[16];
	unsigned int i;
	int ret;

	snprintf(name, sizeof(name), "sim_spi.%u", number);
	mutex_init(&bus->lock);
	ret = add_chips(bus, &all_boards[boards[number]]);
	bus->parent = faux_device_create(name, NULL, NULL);
	if (ret || !bus->parent)
		return -ENOMEM;
	controller = spi_alloc_host(&bus->parent->dev, sizeof(bus));
	if (!controller)
		return -ENOMEM;
	*(struct bus **)spi_controller_get_devdata(controller) = bus;
	controller->bus_num = number;
	controller->num_chipselect = bus->chip_selects;
	controller->mode_bits = mode_bits[number];
	controller->bits_per_word_mask = word_sizes[number];
	controller->max_speed_hz = max_speed_hz[number];
	controller->min_speed_hz = min_speed_hz[number];
	controller->setup = sim_setup;
	controller->set_cs = sim_set_cs;
	controller->prepare_message = sim_prepare_message;
	controller->transfer_one = sim_transfer_one;
	ret = spi_register_controller(controller);
	if (ret) {
		spi_controller_put(controller);
		return ret;
	}
	bus->controller = controller;
	for (info.chip_select = 0; info.chip_select < bus->chip_selects; info.chip_select++)
		if (!spi_new_device(controller, &info))
			return -EIO;

	snprintf(name, sizeof(name), "spi%u", number);
	bus->directory = debugfs_create_dir(name, top);
	debugfs_create_file("state", 0444, bus->directory, bus, &state_fops);
	debugfs_create_file("reset", 0200, bus->directory, bus, &reset_fops);
	debugfs_create_file("fail", 0200, bus->directory, bus, &fail_fops);
	debugfs_create_file("suspend", 0200, bus->directory, bus, &suspend_fops);
	for (i = 0; i < bus->chip_selects; i++) {
		snprintf(name, sizeof(name), "cs%u", i);
		if (bus->lines[i].contents.data)
			debugfs_create_blob(name, 0400, bus->directory, &bus->lines[i].contents);
	}
	return 0;
}

static void sim_spi_exit(void)
{
	unsigned int i;

	for (i = 0; i < controllers; i++)
		remove_bus(&buses[i]);
	debugfs_remove(top);
}

static int __init sim_spi_init(void)
{
	unsigned int i;
	int ret = 0;

	if (!controllers || controllers > MAX_CONTROLLERS)
		return -EINVAL;
	for (i = 0; i < controllers; i++)
		if (boards[i] >= ARRAY_SIZE(all_boards))
			return -EINVAL;
	top = debugfs_create_dir(KBUILD_MODNAME, NULL);
	for (i = 0; i < controllers && !ret; i++)
		ret = add_bus(i);
	if (ret)
		sim_spi_exit();
	return ret;
}

module_init(sim_spi_init);
module_exit(sim_spi_exit);
MODULE_DESCRIPTION("Simulated SPI controllers that count what happens on their lines");
MODULE_LICENSE("Dual BSD/GPL");
