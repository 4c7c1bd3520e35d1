/**
 * Images that QEMU wrote, over the space of its options: vblk reads what QEMU reads.
 */

import { assert, assertEquals } from "@std/assert";
import { attach } from "../../../src/attach.ts";
import { openImage } from "../../../src/image/open.ts";
import { Random } from "../../random.ts";
import { failureOf, firstDifference, Folder, randomBytes, readBytes, tryRun } from "../../storage/support.ts";
import { DEFAULT_SETTINGS } from "../../../src/script/open_settings.ts";
import { Session } from "../../../src/script/session.ts";
import { Capture, TestSession } from "../../script/capture.ts";
import { makeImage, NEEDS_QEMU, pattern, start, writePatternFile } from "./shapes.ts";

/** Images for each of the tests; each with a seed of its own. */
const IMAGES = 160;
const FIRST_SEED = 1;

/** Two processes at a time, whatever the test is waiting for. */
async function forEachSeed(body: (seed: number) => Promise<void>): Promise<void> {
  let next = FIRST_SEED;
  const work = async () => {
    while (next < FIRST_SEED + IMAGES) {
      const seed = next++;
      try {
        await body(seed);
      } catch (error) {
        throw new Error(`with seed ${seed}: ${(error as Error).message}`, { cause: error });
      }
    }
  };
  await Promise.all(Array.from({ length: 4 }, work));
}

/** Lines that qemu-io printed for `commands`. */
async function qemuIo(path: string, ...commands: string[]): Promise<string[]> {
  const text = await start("qemu-io", "-r", "-f", "qcow2", ...commands.flatMap((command) => ["-c", command]), path);
  return text.trimEnd().split("\n");
}

Deno.test({
  name: "a qcow2 image that QEMU wrote reads as in QEMU, byte for byte, and maps as in qemu-io, whatever its options",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    pattern.path = writePatternFile(folder, new Random(0));
    const kinds = new Set<string>();
    await forEachSeed(async (seed) => {
      const random = new Random(seed);
      const { path, sizeBytes, story } = await makeImage(folder, `disk-${seed}`, random);
      const told = () => story.join("\n");
      const { success, text } = tryRun("qemu-img", "convert", "-O", "raw", path, `${path}.raw`);
      if (!success) {
        // Once in a thousand QEMU 7.2 damages its image so that it can't read it itself. Nobody else should either.
        assert(text.includes("Input/output error"), text);
        const damaged = await openImage(path, { readOnly: true });
        assertEquals((await failureOf(() => readBytes(damaged, 0, sizeBytes))).kind, "corrupt", told());
        return damaged.close();
      }
      const expected = Deno.readFileSync(`${path}.raw`);
      assertEquals(expected.byteLength, sizeBytes);

      const machine = await attach(path, { readOnly: true, ramBytes: 16 << 20 });
      assertEquals([machine.image.format, machine.guest.sizeBytes], ["qcow2", sizeBytes]);
      for (let i = 0; i < 20; i++) {
        const offset = 512 * random.below(sizeBytes / 512);
        const length = Math.min(512 * random.between(1, random.pick([8, 512])), sizeBytes - offset);
        const found = await machine.guest.read(offset, length);
        const where = firstDifference(found, expected.subarray(offset, offset + length));
        assert(where < 0, `read ${offset} ${length} differs at ${where}:\n${told()}`);
      }
      await machine.close();

      const offset = 512 * random.below(sizeBytes / 512);
      const commands = ["info", "map", `alloc ${offset} ${random.between(1, sizeBytes)}`, "length"];
      const theirs = await qemuIo(path, ...commands);
      assertEquals(await vblk(path, ...commands), theirs, told());
      const image = await openImage(path, { readOnly: true });
      for (const { kind } of await image.map(0, sizeBytes)) kinds.add(kind);
      const whole = await readBytes(image, 0, sizeBytes);
      const where = firstDifference(whole, expected);
      assert(where < 0, `the image differs at ${where}:\n${told()}`);
      image.close();
      for (const end of ["", ".raw", ".base", ".data"]) {
        try {
          Deno.removeSync(path + end);
        } catch {
          // Not every image has all of them.
        }
      }
    });
    assertEquals([...kinds].sort(), ["compressed", "data", "unallocated", "zero"]);
  },
});

/** Lines that vblk prints for the same commands. */
async function vblk(path: string, ...commands: string[]): Promise<string[]> {
  const capture = new Capture();
  const session = new Session({ output: capture, machine: { ramBytes: 4 << 20 } });
  await session.open(path, { ...DEFAULT_SETTINGS, readOnly: true });
  await using test = new TestSession(session, capture);
  return await test.run(...commands);
}

Deno.test({
  name: "a difference of one byte in a qcow2 image shows in the comparison with QEMU (canary)",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    const path = folder.file("disk");
    await start("qemu-img", "create", "-q", "-f", "qcow2", path, "1M");
    await start("qemu-io", "-c", "write -P 7 0 64k", path);
    const image = await openImage(path, { readOnly: true });
    const [{ hostOffset }] = await image.map(0, 512);
    const expected = new Uint8Array(65536).fill(7);
    assertEquals(firstDifference(await readBytes(image, 0, 65536), expected), -1);
    image.close();
    const bytes = Deno.readFileSync(path);
    bytes[hostOffset! + 5000] ^= 1;
    Deno.writeFileSync(path, bytes);
    const changed = await openImage(path, { readOnly: true });
    assertEquals(firstDifference(await readBytes(changed, 0, 65536), expected), 5000);
    changed.close();
  },
});

Deno.test({
  name: "an image with a virtual size of 16 TiB opens with the memory of a small one, and reads at both ends",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    const path = folder.file("huge");
    await start("qemu-img", "create", "-q", "-f", "qcow2", path, "16T");
    const data = randomBytes(new Random(1), 512);
    const file = folder.file("data", data);
    const end = 2 ** 44 - 512;
    await start("qemu-io", "-c", `write -s ${file} ${end} 512`, path);
    const image = await openImage(path, { readOnly: true });
    assertEquals(await readBytes(image, end, 512), data);
    assertEquals(await readBytes(image, 0, 512), new Uint8Array(512));
    assertEquals(await vblk(path, "map"), await qemuIo(path, "map"));
    image.close();
  },
});
