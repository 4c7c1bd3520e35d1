/**
 * Commands that qemu-io has and vblk has not, with the reason: a script that uses one deserves better than to hear
 * that there is no such command.
 *
 * @module
 */

import { type Command, CommandError } from "./command.ts";

const ZONES = "the device is not a zoned one (VIRTIO_BLK_F_ZONED)";

const REASONS: Readonly<Record<string, string>> = {
  zone_report: ZONES,
  zone_open: ZONES,
  zone_close: ZONES,
  zone_finish: ZONES,
  zone_reset: ZONES,
  zone_append: ZONES,
};

/** The commands of this file; `help` does not list them. */
export const UNSUPPORTED_COMMANDS: readonly Command[] = Object.entries(REASONS).map(([name, reason]) => ({
  name,
  args: "...",
  summary: `not supported: ${reason}`,
  count: [0, Infinity],
  withoutImage: true,
  run: () => {
    throw new CommandError(`${name} is not supported: ${reason}`, { stream: "stderr" });
  },
}));
