/**
 * The options of `amend`, by qemu-img's names: those of `create` that an image can change.
 *
 * @module
 */

import { parseOptionText } from "./block_options.ts";
import { createOptionRow, CreateOptionsError, type CreateValues, readCreateOptions } from "./create_options.ts";

/** Options that new images have too. */
const SHARED = [
  "backing_file",
  "backing_fmt",
  "compat",
  "data_file",
  "data_file_raw",
  "lazy_refcounts",
  "refcount_bits",
  "size",
];

/** Options of encrypted images, which vblk knows only to refuse them. */
const ENCRYPTION: readonly (readonly [name: string, type: string, help: string])[] = [
  ["encrypt.iter-time", "num", "Time to spend in PBKDF in milliseconds"],
  ["encrypt.keyslot", "num", "Select a single keyslot to modify explicitly"],
  ["encrypt.new-secret", "str", "New secret to set in the matching keyslots. Empty string to erase"],
  ["encrypt.old-secret", "str", "Select all keyslots that match this password"],
  ["encrypt.state", "str", "Select new state of affected keyslots (active/inactive)"],
];

/** The list of the options: lines. */
export function amendOptionsHelp(): string[] {
  const rows = [...SHARED.map((name) => createOptionRow("qcow2", name)!), ...ENCRYPTION];
  const sorted = rows.toSorted(([a], [b]) => a < b ? -1 : 1);
  return [
    "Amend options for 'qcow2':",
    ...sorted.map(([name, type, help]) => `  ${`${name}=<${type}>`.padEnd(22)} - ${help}`),
  ];
}

/**
 * Reads `name=value,...`.
 *
 * @throws CreateOptionsError in QEMU's words
 */
export function readAmendOptions(text: string): CreateValues {
  const values: CreateValues = new Map();
  for (const [name, value] of parseOptionText(text)) {
    if (ENCRYPTION.some(([other]) => other === name)) values.set(name, String(value));
    else if (SHARED.includes(name)) {
      const read = readCreateOptions("qcow2", `${name}=${String(value).replaceAll(",", ",,")}`);
      for (const [name, value] of read) values.set(name, value);
    } else {
      // What belongs to the file only is no option of the format's.
      const isForNew = createOptionRow("qcow2", name) !== null;
      const hint = isForNew ? "This option is only supported for image creation" : undefined;
      throw new CreateOptionsError(`Invalid parameter '${name}'`, hint);
    }
  }
  return values;
}
