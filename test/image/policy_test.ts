import { assertEquals } from "@std/assert";
import { PolicyImage } from "../../src/image/policy.ts";
import { RawImage } from "../../src/image/raw/raw_image.ts";
import { SegmentList } from "../../src/memory/segment_list.ts";
import { FaultStorage } from "../../src/storage/fault.ts";
import { MemoryStorage } from "../../src/storage/memory.ts";

/** An image and the list of operations that reached its storage. */
function watched(policy: ConstructorParameters<typeof PolicyImage>[1]): [PolicyImage, string[]] {
  const seen: string[] = [];
  const storage = new FaultStorage(new MemoryStorage(8192), ({ kind }) => void seen.push(kind));
  return [new PolicyImage(new RawImage(storage), policy), seen];
}

function everything(image: PolicyImage): void {
  const bytes = SegmentList.over(new Uint8Array(512));
  image.write(0, bytes);
  image.read(0, bytes);
  image.flush();
  image.writeZeroes(0, 512, true);
  image.discard(0, 512);
  image.resize(4096);
}

Deno.test("PolicyImage passes everything on that its policy does not name", async () => {
  const [image, seen] = watched({});
  everything(image);
  assertEquals(seen, ["write", "read", "flush", "zero", "discard", "truncate"]);
  assertEquals([image.sizeBytes, image.format, image.readOnly, image.name], [4096, "raw", false, "mem:8192"]);
  assertEquals((await image.map(0, 512)).length, 1);
  assertEquals(image.details, undefined);
});

Deno.test("PolicyImage with ignoreFlush lets no flush through, with ignoreDiscard no discard", () => {
  const [unsafe, seen] = watched({ ignoreFlush: true });
  everything(unsafe);
  assertEquals(seen, ["write", "read", "zero", "discard", "truncate"]);
  const [kept, alsoSeen] = watched({ ignoreDiscard: true });
  everything(kept);
  assertEquals(alsoSeen, ["write", "read", "flush", "zero", "truncate"]);
});
