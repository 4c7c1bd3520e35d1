/**
 * Sizes and JSON as qemu-img prints them.
 *
 * @module
 */

const UNITS = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/** A size with three digits: `196 KiB`, `1.29 MiB`, `0.977 MiB`. */
export function humanSize(bytes: number): string {
  let unit = 0;
  // From 1000 of a unit on the next one is used, so that three digits are enough.
  while (unit < UNITS.length - 1 && bytes / 1024 ** unit >= 1000) unit++;
  return `${threeDigits(bytes / 1024 ** unit)} ${UNITS[unit]}B`;
}

/** As printf's `%0.3g` prints it: what is exactly in between goes to the even digit. */
function threeDigits(value: number): string {
  if (value === 0) return "0";
  const unit = value < 1 ? 1000 : value < 10 ? 100 : value < 100 ? 10 : 1;
  const digits = value * unit;
  const down = Math.floor(digits);
  const rounded = digits - down === 0.5 ? down + down % 2 : Math.round(digits);
  // 999.9 has no three digits that are not a thousand.
  return rounded === 1000 && unit === 1 ? "1e+03" : String(rounded / unit);
}

/** What JSON can hold. A `bigint` is printed as a number. */
export type Json = string | number | bigint | boolean | readonly Json[] | { readonly [name: string]: Json | undefined };

/** JSON with four spaces for each level, and an array without elements over two lines; lines. */
export function qemuJson(value: Json): string[] {
  return render(value, "").split("\n");
}

function render(value: Json, indent: string): string {
  if (typeof value === "string") return quoted(value);
  if (typeof value !== "object") return String(value);
  const inner = `${indent}    `;
  const isArray = Array.isArray(value);
  const parts = isArray
    ? value.map((element: Json) => render(element, inner))
    : Object.entries(value).flatMap(([name, element]) =>
      element === undefined ? [] : [`${quoted(name)}: ${render(element, inner)}`]
    );
  const [open, close] = isArray ? "[]" : "{}";
  const body = parts.map((part) => `\n${inner}${part}`).join(",");
  return `${open}${body}\n${indent}${close}`;
}

/** Nothing but ASCII, whatever the names in an image hold. */
function quoted(text: string): string {
  return JSON.stringify(text).replace(
    /[\x7f-\uffff]/g,
    (unit) => `\\u${unit.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}`,
  );
}
