/**
 * `vblk check`: looks for damage in a qcow2 image, and repairs it, as `qemu-img check` does.
 *
 * @module
 */

import { checkReadable, probe } from "../image/probe.ts";
import type { CheckOptions, CheckReport } from "../image/qcow2/check_report.ts";
import type { RepairKind } from "../image/qcow2/repair.ts";
import type { Output } from "../script/session.ts";
import { BlockError } from "../storage/block_error.ts";
import { DenoFileStorage } from "../storage/deno_file.ts";
import {
  checkOutput,
  FORCE_SHARE,
  FORMAT,
  IMAGE_OPTS,
  type ImageArguments,
  imageCommand,
  NO_OBJECTS_HINT,
  OBJECT,
  OUTPUT,
  PROGRESS,
  QUIET,
  refuseObject,
} from "./image_command.ts";
import type { Subcommand } from "./main.ts";
import { Progress } from "./progress.ts";
import { checkCache, ImageCommandError, usage } from "./qemu_img.ts";
import { qemuJson } from "./qemu_text.ts";

const HELP = [
  "Usage: vblk check [-f FORMAT] [-r leaks|all] [--output human|json] [-U] [-q] [-p] IMAGE",
  "",
  "Looks for damage in a qcow2 image, and with -r repairs it. Backing and data files are not opened.",
  "",
  "  -f, --format FORMAT      qcow2; found out when not given",
  "  -r, --repair leaks|all   repair lost space only, or whatever can be. Make a copy first: with 'all' a wrong table is",
  "                           made consistent, which need not be what it was",
  "      --output human|json  text (default), or JSON",
  "  -U, --force-share        take no lock: for an image that a machine uses now; not with -r",
  "  -q, --quiet              print nothing but errors",
  "  -p, --progress           print how much is done",
  "  -T, --cache MODE         as in qemu-img; makes no difference",
  "  -h, --help               this text",
  "",
  "Exit codes: 0 no errors, 1 the check could not be done, 2 the image is damaged, 3 space is lost, 63 the format has no",
  "checks. Findings go to standard error.",
  "",
  "Example: vblk check -r leaks disk.qcow2",
];

/** The subcommand. */
export const subcommand: Subcommand = imageCommand({
  name: "check",
  help: HELP,
  options: [
    FORMAT,
    { name: "repair", value: "required", letter: "r", check: checkRepair },
    { ...OUTPUT, check: (value) => checkOutput(value) },
    FORCE_SHARE,
    QUIET,
    PROGRESS,
    { name: "cache", value: "required", letter: "T" },
    { ...IMAGE_OPTS, check: refuseImageOpts },
    { ...OBJECT, check: () => refuseObject(NO_OBJECTS_HINT) },
  ],
  letters: "t:",
  run,
});

function checkRepair(value: string): void {
  if (value === "leaks" || value === "all") return;
  throw usage("check", `Unknown option value for -r (expecting 'leaks' or 'all'): ${value}`);
}

function refuseImageOpts(): never {
  throw new ImageCommandError("--image-opts: check takes file names only", { hint: "give the image's file name" });
}

interface Wishes {
  readonly format: string | undefined;
  readonly repair: RepairKind | undefined;
  readonly json: boolean;
  readonly share: boolean;
  readonly quiet: boolean;
  readonly progress: boolean;
}

const NOT_SUPPORTED = 63;

async function run(given: ImageArguments, output: Output): Promise<number> {
  const wishes: Wishes = {
    format: given.last("f"),
    repair: given.last("r") as RepairKind | undefined,
    json: given.last("output") === "json",
    share: given.has("U"),
    quiet: given.has("q"),
    progress: given.has("p"),
  };
  if (given.operands.length !== 1) throw usage("check", "Expecting one image file name");
  const cache = given.last("t", "T");
  if (cache !== undefined) checkCache(cache, "source cache");
  const [name] = given.operands;
  const storage = await openStorage(name, wishes);
  try {
    return await checkStorage(storage, name, wishes, output);
  } finally {
    storage.close();
  }
}

/** Opens the file, and finds out that it is qcow2. Refuses with qemu-img's words. */
async function openStorage(name: string, { format, repair, share }: Wishes): Promise<DenoFileStorage> {
  const couldNot = (why: string, error?: unknown) =>
    new ImageCommandError(`Could not open '${name}': ${why}`, {
      cause: error,
      hint: error instanceof BlockError ? error.hint : undefined,
    });
  if (share && repair !== undefined) throw couldNot("force-share=on can only be used with read-only images");
  let storage: DenoFileStorage | undefined;
  try {
    const path = name.startsWith("file:") ? name.slice("file:".length) : name;
    storage = DenoFileStorage.open(path, { readOnly: repair === undefined, share });
    const found = format ?? await probe(storage);
    checkReadable(name, found, format === undefined ? "found" : "asked for");
    if (found === "raw") {
      throw new ImageCommandError("This image format does not support checks", { code: NOT_SUPPORTED });
    }
    return storage;
  } catch (error) {
    storage?.close();
    if (!(error instanceof BlockError)) throw error;
    throw couldNot(error.reason.startsWith("Unknown driver") ? error.reason : error.message, error);
  }
}

async function checkStorage(storage: DenoFileStorage, name: string, wishes: Wishes, output: Output): Promise<number> {
  const { repair, json, quiet } = wishes;
  const mode = wishes.progress ? "percent" : quiet ? "none" : "bar";
  const progress = new Progress({ mode, step: 1 });
  const options: CheckOptions = {
    onProgress: (part) => progress.set(part * 100),
    onFinding: (line) => {
      progress.clear();
      output.err([line]);
    },
  };
  const say = (lines: readonly string[]) => {
    if (!quiet) output.out(lines);
  };
  let report = await look(storage, name, repair, options);
  const { leaksFixed, corruptionsFixed } = report;
  if (leaksFixed + corruptionsFixed > 0 && report.failure === null) {
    progress.clear();
    if (!json) say(repairedLines(report));
    report = { ...await look(storage, name, undefined, options), leaksFixed, corruptionsFixed };
  }
  progress.end();
  if (report.failure !== null) throw new ImageCommandError(`Check failed: ${report.failure}`);
  say(json ? qemuJson(jsonOf(report, name)) : humanLines(report));
  if (report.checkErrors > 0) throw new ImageCommandError("Check failed");
  return report.corruptions > 0 ? 2 : report.leaks > 0 ? 3 : 0;
}

async function look(
  storage: DenoFileStorage,
  name: string,
  repair: RepairKind | undefined,
  options: CheckOptions,
): Promise<CheckReport> {
  const { readHeader } = await import("../image/qcow2/header.ts");
  try {
    const header = await readHeader(storage, { forCheck: true });
    if (repair === undefined) {
      return await (await import("../image/qcow2/check.ts")).checkQcow2(storage, header, options);
    }
    return await (await import("../image/qcow2/repair.ts")).repairQcow2(storage, header, repair, options);
  } catch (error) {
    if (!(error instanceof BlockError) || error.operation !== "open") throw error;
    throw new ImageCommandError(`Could not open '${name}': ${error.reason}`, { cause: error });
  }
}

function repairedLines({ leaksFixed, corruptionsFixed }: CheckReport): string[] {
  return [
    "The following inconsistencies were found and repaired:",
    "",
    `    ${leaksFixed} leaked clusters`,
    `    ${corruptionsFixed} corruptions`,
    "",
    "Double checking the fixed image now...",
  ];
}

function humanLines(report: CheckReport): string[] {
  const { checkErrors, corruptions, leaks, imageEndOffset } = report;
  const lines: string[] = [];
  if (checkErrors + corruptions + leaks === 0) lines.push("No errors were found on the image.");
  if (corruptions > 0) {
    lines.push(
      "",
      `${corruptions} errors were found on the image.`,
      "Data may be corrupted, or further writes to the image may corrupt it.",
    );
  }
  if (leaks > 0) {
    lines.push(
      "",
      `${leaks} leaked clusters were found on the image.`,
      "This means waste of disk space, but no harm to data.",
    );
  }
  if (checkErrors > 0) lines.push("", `${checkErrors} internal errors have occurred during the check.`);
  const { totalClusters, allocatedClusters, fragmentedClusters, compressedClusters } = report;
  if (totalClusters > 0 && allocatedClusters > 0) {
    const percent = (part: number, whole: number) => `${twoDecimals(part * 100 / whole)}%`;
    lines.push(
      `${allocatedClusters}/${totalClusters} = ${percent(allocatedClusters, totalClusters)} allocated, ` +
        `${percent(fragmentedClusters, allocatedClusters)} fragmented, ` +
        `${percent(compressedClusters, allocatedClusters)} compressed clusters`,
    );
  }
  if (imageEndOffset > 0) lines.push(`Image end offset: ${imageEndOffset}`);
  return lines;
}

/** In qemu-img's order; what is zero is left out, but for the errors of the check. */
function jsonOf(report: CheckReport, name: string): Record<string, string | number | undefined> {
  const some = (value: number) => value === 0 ? undefined : value;
  return {
    "image-end-offset": some(report.imageEndOffset),
    "compressed-clusters": some(report.compressedClusters),
    "total-clusters": some(report.totalClusters),
    "corruptions": some(report.corruptions),
    "corruptions-fixed": some(report.corruptionsFixed),
    "check-errors": report.checkErrors,
    "leaks": some(report.leaks),
    "leaks-fixed": some(report.leaksFixed),
    "allocated-clusters": some(report.allocatedClusters),
    "filename": name,
    "format": "qcow2",
    "fragmented-clusters": some(report.fragmentedClusters),
  };
}

/** As printf does it: what is exactly in between goes to the even digit. That happens to odd eighths only. */
function twoDecimals(value: number): string {
  return (value * 8 % 2 === 1 ? 2 * Math.round(value * 50) / 100 : value).toFixed(2);
}
