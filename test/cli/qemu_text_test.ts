/** Sizes and JSON in QEMU's form. */

import { assertEquals } from "@std/assert";
import { humanSize, qemuJson } from "../../src/cli/qemu_text.ts";

Deno.test("humanSize has three digits, and uses the next unit from 1000 on", () => {
  const rows: [bytes: number, text: string][] = [
    [0, "0 B"],
    [512, "512 B"],
    [999, "999 B"],
    [1000, "0.977 KiB"],
    [1024, "1 KiB"],
    [1536, "1.5 KiB"],
    [200704, "196 KiB"],
    // Exactly in between goes to the even digit.
    [938496, "916 KiB"],
    [197120, "192 KiB"],
    [939520, "918 KiB"],
    [1023488, "1e+03 KiB"],
    [1024000, "0.977 MiB"],
    [1264196608, "1.18 GiB"],
    [2 ** 40, "1 TiB"],
    [2 ** 53, "8 PiB"],
  ];
  for (const [bytes, text] of rows) assertEquals(humanSize(bytes), text);
});

Deno.test("qemuJson is JSON, in ASCII, with empty arrays over two lines", () => {
  const value = { a: [1, { b: 'ü\u{1f600}\n"' }, []], big: 2n ** 63n, none: undefined };
  const lines = qemuJson(value);
  assertEquals(lines, [
    "{",
    '    "a": [',
    "        1,",
    "        {",
    '            "b": "\\u00FC\\uD83D\\uDE00\\n\\""',
    "        },",
    "        [",
    "        ]",
    "    ],",
    '    "big": 9223372036854775808',
    "}",
  ]);
  assertEquals(JSON.parse(lines.join("\n")).a[1].b, 'ü\u{1f600}\n"');
});
