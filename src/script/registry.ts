/**
 * All commands, by name.
 *
 * @module
 */

import { AIO_COMMANDS } from "./aio_commands.ts";
import { BREAK_COMMANDS } from "./break_commands.ts";
import { CHAIN_COMMANDS } from "./chain_command.ts";
import type { Command } from "./command.ts";
import { CONTROL_COMMANDS } from "./control_commands.ts";
import { DEVICE_COMMANDS } from "./device_commands.ts";
import { IMAGE_COMMANDS } from "./image_commands.ts";
import { OPEN_COMMANDS } from "./open_commands.ts";
import { READ_COMMANDS } from "./read_commands.ts";
import { RING_COMMANDS } from "./ring_commands.ts";
import { nearest } from "./suggest.ts";
import { UNSUPPORTED_COMMANDS } from "./unsupported_commands.ts";
import { WRITE_COMMANDS } from "./write_commands.ts";

// A function, because `help` is among the commands and needs the list itself.
const listed = (): readonly Command[] => [
  ...READ_COMMANDS,
  ...WRITE_COMMANDS,
  ...AIO_COMMANDS,
  ...IMAGE_COMMANDS,
  ...OPEN_COMMANDS,
  ...BREAK_COMMANDS,
  ...DEVICE_COMMANDS,
  ...RING_COMMANDS,
  ...CHAIN_COMMANDS,
  ...CONTROL_COMMANDS,
];

let byName: Map<string, Command> | null = null;

/** The command called `name`, by its name or its alias. */
export function findCommand(name: string): Command | undefined {
  if (byName === null) {
    byName = new Map();
    for (const command of [...listed(), ...UNSUPPORTED_COMMANDS]) {
      byName.set(command.name, command);
      if (command.alias !== undefined) byName.set(command.alias, command);
    }
  }
  return byName.get(name);
}

/** The commands that can be used, in the order of their names. */
export function allCommands(): Command[] {
  return [...listed()].sort((a, b) => a.name < b.name ? -1 : 1);
}

/** The command whose name is nearest to what was typed, if any is near. */
export function suggestCommand(typed: string): string | undefined {
  return nearest(typed, allCommands().map(({ name }) => name));
}
