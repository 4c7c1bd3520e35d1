import { assertEquals } from "@std/assert";
import { fileURLToPath } from "node:url";
import { requires } from "./requires.ts";

/** Programs that judge a fixture without changing it, and exit with 0 if it is sound. */
const JUDGES = [
  { image: "ext4.img", program: "e2fsck", args: ["-fn"] },
  { image: "vfat.img", program: "fsck.vfat", args: ["-n"] },
];

for (const { image, program, args } of JUDGES) {
  Deno.test({
    name: `fixtures/${image} is sound, says ${program}`,
    ...requires(program),
    async fn() {
      const path = fileURLToPath(new URL(`../fixtures/${image}`, import.meta.url));
      const { code } = await new Deno.Command(program, { args: [...args, path] }).output();
      assertEquals(code, 0);
    },
  });
}
