/**
 * Holds the folders of `src/` to the order in which a request travels: who may import whom, where foreign code is
 * loaded, and where files are opened. Reads the module graph that Deno itself resolves, so type-only and dynamic
 * imports count too.
 */

import { assert, assertEquals } from "@std/assert";
import { matchesGlob } from "node:path";
import { fileURLToPath } from "node:url";

/** Which modules a folder may import besides its own; paths are relative to `src/`. */
const MAY_IMPORT: Record<string, readonly string[]> = {
  memory: [],
  virtio: ["memory/**"],
  host: [],
  storage: ["memory/**", "host/**"],
  image: ["memory/**", "storage/**"],
  // The block device sees an Image, never a format: of image/ only the files that lie directly in it.
  blk: ["memory/**", "virtio/**", "image/*.ts"],
  // A transport sees a Device, never virtio-blk.
  transport: ["memory/**", "virtio/**", "host/**"],
  // Driver and device share only layouts, so that each of them tests the other.
  guest: ["memory/**", "virtio/**/*layout.ts", "virtio/features.ts", "blk/*layout.ts", "transport/mmio/**"],
  // The command language opens and closes images and can show every part.
  script: [
    "machine.ts",
    "statistics.ts",
    "guest/**",
    "transport/**",
    "blk/**",
    "image/**",
    "storage/**",
    "virtio/**",
    "memory/**",
  ],
  // The daemon's thread: a device, its transport and an image put together on one io_uring.
  serve: ["memory/**", "virtio/**", "blk/**", "image/**", "storage/**", "transport/**", "host/**"],
  cli: ["**"],
  trace: [],
  std: [],
  // cli.ts and src/mod.ts
  "": ["**"],
};

const EVERYBODY_MAY_IMPORT = ["trace/**", "std/**"];

/** Modules that may open files. Not the devices: what a guest says must never name a file. */
const FILE_USERS = ["storage/**", "cli/**", "script/**", "std/fs/**"];

const FILE_CALL =
  /\bDeno\.(?:copyFile|create|link|lstat|makeTemp\w+|mkdir|open|read(?:Dir|File|Link|TextFile)|realPath|remove|rename|stat|symlink|truncate|write(?:File|TextFile))(?:Sync)?\b/g;

/** Which modules may use what is found by a pattern. */
const MAY_USE: readonly { pattern: RegExp; users: readonly string[] }[] = [
  { pattern: /\bDeno\.dlopen\b/g, users: ["host/**"] },
  { pattern: FILE_CALL, users: FILE_USERS },
];

/** One import: `to` is a path relative to `src/` if it lies there, else what was resolved (`node:fs`, a URL). */
interface Edge {
  from: string;
  to: string;
}

function isIn(path: string, globs: readonly string[]): boolean {
  return globs.some((glob) => matchesGlob(path, glob));
}

/** The first folder of a path below `src/`; empty for a file directly in it and for `../cli.ts`. */
function folderOf(path: string): string {
  return path.startsWith("../") || !path.includes("/") ? "" : path.split("/")[0];
}

function isAllowed({ from, to }: Edge): boolean {
  if (/^node:fs(\/|$)/.test(to)) return isIn(from, FILE_USERS);
  if (to.startsWith("node:")) return true;
  if (/^[a-z]+:/.test(to) || to.startsWith("../")) return false; // npm:, https:, jsr: or a file outside src/
  const folder = folderOf(from);
  return folder === folderOf(to) || isIn(to, [...MAY_IMPORT[folder] ?? [], ...EVERYBODY_MAY_IMPORT]);
}

function forbiddenEdges(edges: readonly Edge[]): string[] {
  return edges.filter((edge) => !isAllowed(edge)).map(({ from, to }) => `${from} imports ${to}`);
}

function forbiddenUses(path: string, source: string): string[] {
  const code = source.replace(/\/\*[^]*?\*\/|\/\/.*/g, "");
  return MAY_USE.filter(({ users }) => !isIn(path, users))
    .flatMap(({ pattern }) => [...code.matchAll(pattern)].map(([use]) => `${path} uses ${use}`));
}

const SRC = new URL("../../src/", import.meta.url);

/** A module's path relative to `src/`, or what it is when it is not a file of this project. */
function relative(specifier: string): string {
  if (specifier.startsWith(SRC.href)) return specifier.slice(SRC.href.length);
  const project = new URL("../", SRC).href;
  return specifier.startsWith(project) ? `../${specifier.slice(project.length)}` : specifier;
}

/** The modules of `cli.ts` and of all of `src/`, with or without somebody who imports them. */
async function modules(): Promise<URL[]> {
  const found = [new URL("../cli.ts", SRC)];
  async function visit(folder: URL): Promise<void> {
    for await (const { name, isDirectory } of Deno.readDir(folder)) {
      if (isDirectory) await visit(new URL(`${name}/`, folder));
      else if (name.endsWith(".ts")) found.push(new URL(name, folder));
    }
  }
  await visit(SRC);
  return found;
}

interface Info {
  modules: {
    specifier: string;
    error?: string;
    dependencies?: { code?: { specifier: string }; type?: { specifier: string } }[];
  }[];
}

/** Every import between the given modules and what they import. */
async function readGraph(modules: readonly URL[]): Promise<Edge[]> {
  // One root that imports them all costs one process instead of one for each module.
  const root = await Deno.makeTempFile({ suffix: ".ts" });
  try {
    await Deno.writeTextFile(root, modules.map(({ href }) => `import "${href}";\n`).join(""));
    const config = fileURLToPath(new URL("../deno.json", SRC));
    const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["info", "--json", "--no-remote", "--no-npm", "--config", config, root],
    }).output();
    if (!success) throw new Error(`deno info failed: ${new TextDecoder().decode(stderr)}`);
    const info: Info = JSON.parse(new TextDecoder().decode(stdout));
    return info.modules.filter(({ specifier }) => specifier.startsWith(new URL("../", SRC).href))
      .flatMap(({ specifier, error, dependencies = [] }) => {
        if (error !== undefined) throw new Error(error);
        return dependencies.flatMap(({ code, type }) => [code, type])
          .filter((target) => target !== undefined)
          .map((target) => ({ from: relative(specifier), to: relative(target.specifier) }));
      });
  } finally {
    await Deno.remove(root);
  }
}

Deno.test("imports between the folders of src/ keep to the table", async () => {
  const edges = await readGraph(await modules());
  // An empty graph would keep to every rule; these two import nearly everything.
  for (const face of ["../cli.ts", "mod.ts"]) {
    assert(edges.some(({ from }) => from === face), `${face} imports nothing`);
  }
  assertEquals(forbiddenEdges(edges), []);
});

Deno.test("foreign code is loaded only in src/host/, files are opened only by their users", async () => {
  const all = await modules();
  const sources = await Promise.all(all.map((url) => Deno.readTextFile(url)));
  assertEquals(all.flatMap((url, i) => forbiddenUses(relative(url.href), sources[i])), []);
});

Deno.test("every folder of src/ has its row in the table", async () => {
  const folders = new Set((await modules()).map(({ href }) => folderOf(relative(href))));
  assertEquals([...folders].filter((folder) => !(folder in MAY_IMPORT)), []);
});

Deno.test("the import checker reports what is forbidden, and only that", () => {
  const forbidden: Edge[] = [
    { from: "virtio/device.ts", to: "blk/device.ts" },
    { from: "guest/block.ts", to: "virtio/virtqueue/split.ts" },
    { from: "guest/block.ts", to: "blk/device.ts" },
    { from: "guest/block.ts", to: "transport/vhost_user/backend.ts" },
    { from: "transport/mmio/registers.ts", to: "blk/layout.ts" },
    { from: "blk/execute.ts", to: "image/raw/raw.ts" },
    { from: "trace/event.ts", to: "virtio/device.ts" },
    { from: "storage/file.ts", to: "mod.ts" },
    { from: "blk/execute.ts", to: "../cli.ts" },
    { from: "blk/execute.ts", to: "node:fs/promises" },
    { from: "cli/main.ts", to: "npm:chalk" },
    { from: "cli/main.ts", to: "https://example.org/mod.ts" },
    { from: "unheard_of/mod.ts", to: "memory/region.ts" },
  ];
  assertEquals(forbiddenEdges(forbidden), forbidden.map(({ from, to }) => `${from} imports ${to}`));
  const allowed: Edge[] = [
    { from: "virtio/virtqueue/split.ts", to: "virtio/device.ts" },
    { from: "guest/block.ts", to: "virtio/virtqueue/split_layout.ts" },
    { from: "guest/block.ts", to: "virtio/layout.ts" },
    { from: "guest/block.ts", to: "blk/layout.ts" },
    { from: "blk/execute.ts", to: "image/image.ts" },
    { from: "memory/region.ts", to: "trace/event.ts" },
    { from: "storage/file.ts", to: "node:fs" },
    { from: "script/run.ts", to: "node:util" },
    { from: "../cli.ts", to: "cli/main.ts" },
    { from: "mod.ts", to: "guest/mod.ts" },
  ];
  assertEquals(forbiddenEdges(allowed), []);
});

Deno.test("the use checker reports what is forbidden, and only that", () => {
  const source = 'Deno.dlopen("libc.so.6", {}); await Deno.open(path); Deno.statSync(path); Deno.args; // Deno.create';
  const everything = ["Deno.dlopen", "Deno.open", "Deno.statSync"];
  assertEquals(forbiddenUses("blk/x.ts", source), everything.map((use) => `blk/x.ts uses ${use}`));
  assertEquals(forbiddenUses("storage/x.ts", source), ["storage/x.ts uses Deno.dlopen"]);
  assertEquals(forbiddenUses("host/x.ts", source), [
    "host/x.ts uses Deno.open",
    "host/x.ts uses Deno.statSync",
  ]);
});
