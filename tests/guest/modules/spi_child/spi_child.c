// SPDX-License-Identifier: (GPL-2.0 OR BSD-3-Clause)
/*
 * Declares devices on the bus of the virtio SPI controller at run time.
 *
 * A guest normally learns from its device tree or firmware what sits behind each chip select, and a PC or user-mode
 * Linux has neither. Two files in /sys/module/spi_child/parameters take the place of that description:
 *
 *	echo MODALIAS CHIP_SELECT MAX_SPEED_HZ MODE > add	(MODE as in <linux/spi/spi.h>, C notation)
 *	echo CHIP_SELECT > remove				(needed before the controller's driver is unbound)
 *
 * The driver whose name or id table has MODALIAS binds before the write to `add` returns: dh2228fv gives a spidev,
 * spi-nor a flash, spi-loopback-test the kernel's test-suite. at25 finds an AT25256 there, as
 * the device spi-at25256.
 */
#include <linux/device.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/property.h>
#include <linux/spi/spi.h>
#include <linux/string.h>
#include <linux/virtio.h>
#include <linux/virtio_ids.h>

static const struct property_entry at25256[] = {
	PROPERTY_ENTRY_U32("size", 32768),
	PROPERTY_ENTRY_U32("pagesize", 64),
	PROPERTY_ENTRY_U32("address-width", 16),
	{ }
};
static const struct software_node at25256_node = { .name = "at25256", .properties = at25256 };

/* The devices added here, by chip select. The parameter lock of this module serialises the users. */
static struct spi_device *children[16];

/*
 * The virtio bus is not exported, but every registered driver points to it. This one is registered for that alone:
 * its empty id table matches nothing.
 */
static const struct virtio_device_id no_ids[] = { { } };

static int never_probed(struct virtio_device *vdev)
{
	return -ENODEV;
}

static struct virtio_driver bus_finder = {
	.driver.name = KBUILD_MODNAME,
	.id_table = no_ids,
	.probe = never_probed,
};

/*
 * spi-virtio (up to 7.3 at least) has no remove callback, and the virtio core calls it all the same: unbinding the
 * driver jumps to address 0, and user-mode Linux unbinds at every power-off. An empty one is enough, since all that
 * spi-virtio set up is released by devres just after it. (The core then warns that the device was not reset yet.)
 */
static void empty_remove(struct virtio_device *vdev)
{
}

static int is_spi_controller(struct device *dev, const void *unused)
{
	return dev_to_virtio(dev)->id.device == VIRTIO_ID_SPI && dev_get_drvdata(dev);
}

/* Returns the first virtio SPI controller that has its driver, or NULL. */
static struct spi_controller *find_controller(void)
{
	struct device *dev = bus_find_device(bus_finder.driver.bus, NULL, NULL, is_spi_controller);
	struct spi_controller *controller;
	struct virtio_driver *driver;

	if (!dev)
		return NULL;
	driver = drv_to_virtio(dev->driver);
	if (!driver->remove)
		driver->remove = empty_remove;
	/* spi-virtio keeps its controller as its driver data. */
	controller = spi_controller_get(dev_get_drvdata(dev));
	put_device(dev);
	return controller;
}

static int add(const char *text, const struct kernel_param *param)
{
	struct spi_board_info info = { };
	struct spi_controller *controller;
	unsigned int chip_select;
	int ret = 0;

	if (sscanf(text, "%31s %u %u %i", info.modalias, &chip_select, &info.max_speed_hz, &info.mode) != 4 ||
	    chip_select >= ARRAY_SIZE(children))
		return -EINVAL;
	if (children[chip_select])
		return -EBUSY;
	info.chip_select = chip_select;
	if (!strcmp(info.modalias, "at25"))
		info.swnode = &at25256_node;

	controller = find_controller();
	if (!controller) {
		pr_err("spi_child: there is no virtio SPI controller with a driver\n");
		return -ENODEV;
	}
	children[chip_select] = spi_new_device(controller, &info);
	if (!children[chip_select]) /* its reason, such as a chip select the controller lacks, is in the log */
		ret = -EIO;
	spi_controller_put(controller);
	return ret;
}

static int remove(const char *text, const struct kernel_param *param)
{
	unsigned int chip_select;
	int ret = kstrtouint(text, 0, &chip_select);

	if (ret)
		return ret;
	if (chip_select >= ARRAY_SIZE(children) || !children[chip_select])
		return -ENOENT;
	spi_unregister_device(children[chip_select]);
	children[chip_select] = NULL;
	return 0;
}

static const struct kernel_param_ops add_ops = { .set = add };
static const struct kernel_param_ops remove_ops = { .set = remove };

module_param_cb(add, &add_ops, NULL, 0200);
module_param_cb(remove, &remove_ops, NULL, 0200);

static int __init spi_child_init(void)
{
	return register_virtio_driver(&bus_finder);
}

/* There is no exit, so that empty_remove stays: the module cannot be unloaded. */
module_init(spi_child_init);
MODULE_DESCRIPTION("Declares devices behind the virtio SPI controller at run time");
MODULE_LICENSE("Dual BSD/GPL");
