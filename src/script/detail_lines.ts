/**
 * Facts about an image as lines.
 *
 * @module
 */

import type { DetailValue } from "../image/image.ts";

/** Facts in QEMU's form: one a line, what belongs to another indented below it. */
export function detailLines(value: DetailValue, indent: string): string[] {
  const entries = Object.entries(value).map(([key, inner]) =>
    [Array.isArray(value) ? `[${key}]` : key, inner] as const
  );
  return entries.flatMap(([key, inner]) =>
    typeof inner === "object"
      ? [`${indent}${key}:`, ...detailLines(inner, `${indent}    `)]
      : [`${indent}${key}: ${inner}`]
  );
}
