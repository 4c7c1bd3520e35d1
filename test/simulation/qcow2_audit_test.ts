import { assert, assertEquals } from "@std/assert";
import { NEEDS_QEMU } from "../image/qcow2/shapes.ts";
import { Random } from "../random.ts";
import { Folder, run, tryRun } from "../storage/support.ts";
import { audit } from "./qcow2_audit.ts";
import { optionsOf, PLAIN } from "./qcow2_disk.ts";

/** An image with snapshots, compressed and shared clusters, made by QEMU. */
function made(folder: Folder, clusterBytes: number, refcountBits: number): Uint8Array<ArrayBuffer> {
  const path = folder.file("disk");
  const options = optionsOf({ ...PLAIN, clusterBytes, refcountBits });
  run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, "320k");
  run("qemu-io", "-c", "write -c 0 64k", "-c", "write 64k 100k", "-c", "write -z 128k 8k", path);
  if (refcountBits > 4) run("qemu-img", "snapshot", "-c", "one", path);
  run("qemu-io", "-c", "write 20k 30k", path);
  return Deno.readFileSync(path);
}

for (const clusterBytes of [512, 4096, 65536]) {
  for (const refcountBits of [1, 2, 8, 16, 32, 64]) {
    Deno.test({
      name: `an image of QEMU passes the audit: clusters of ${clusterBytes}, refcounts of ${refcountBits} bits`,
      ...NEEDS_QEMU,
      fn() {
        using folder = new Folder();
        assertEquals(audit(made(folder, clusterBytes, refcountBits)), {
          errors: [],
          wrongFlags: [],
          leaks: 0,
          dirty: false,
        });
      },
    });
  }
}

Deno.test({
  name: "what the audit finds in damaged images is what qemu-img check finds (canary)",
  ...NEEDS_QEMU,
  fn() {
    using folder = new Folder();
    const sound = made(folder, 512, 16);
    const view = new DataView(sound.buffer);
    const l1 = Number(view.getBigUint64(40));
    const refcounts = Number(view.getBigUint64(Number(view.getBigUint64(48))));
    const l2 = Number(view.getBigUint64(l1) & 0xffffffffffff00n);
    const random = new Random(1);
    const seen = { errors: 0, wrongFlags: 0, leaks: 0 };
    for (let i = 0; i < 40; i++) {
      const bytes = sound.slice();
      const damaged = new DataView(bytes.buffer);
      const entry = l2 + 8 * random.below(64);
      const kind = random.below(3);
      if (kind === 0) damaged.setUint16(refcounts + 2 * random.below(200), random.below(3));
      else if (kind === 1) damaged.setUint8(entry, damaged.getUint8(entry) ^ 0x80);
      else damaged.setBigUint64(entry, damaged.getBigUint64(l2 + 8 * random.below(64)));
      const { errors, wrongFlags, leaks } = audit(bytes);
      const { text } = tryRun("qemu-img", "check", "-f", "qcow2", folder.file("damaged", bytes));
      const mine = [errors.length + wrongFlags.length > 0, leaks > 0];
      assertEquals(mine, [/^\d+ errors were found/m.test(text), /^\d+ leaked clusters/m.test(text)], text);
      if (errors.length > 0) seen.errors++;
      if (wrongFlags.length > 0) seen.wrongFlags++;
      if (leaks > 0) seen.leaks++;
    }
    assert(Object.values(seen).every((count) => count > 0), JSON.stringify(seen));
  },
});
