/**
 * The host failed: a file, a disk, a permission. The guest gets S_IOERR; people get this.
 *
 * @module
 */

/** What kind of failure it was, independent of the host's operating system. */
export type BlockErrorKind =
  | "not-found"
  | "not-permitted"
  | "not-capable"
  | "is-directory"
  | "unsupported"
  | "invalid"
  | "locked"
  | "no-space"
  | "truncated"
  | "corrupt"
  | "closed"
  | "io";

/** What was being done. */
export type BlockOperation = "open" | "read" | "write" | "flush" | "discard" | "zero" | "resize" | "probe" | "create";

/** The facts of a failure. */
export interface BlockErrorFacts {
  /** What kind of failure it was. */
  readonly kind: BlockErrorKind;
  /** Name of the image, as the user gave it. */
  readonly path: string;
  /** What was being done. */
  readonly operation: BlockOperation;
  /** Byte offset in the file, where there is one. */
  readonly offset?: number;
  /** What went wrong, in plain words; by default that of the kind. */
  readonly reason?: string;
  /** What the user can do about it. */
  readonly hint?: string;
  /** What the host threw. */
  readonly cause?: unknown;
}

const REASONS: Record<BlockErrorKind, string> = {
  "not-found": "No such file or directory",
  "not-permitted": "Permission denied",
  "not-capable": "Deno was not given the permission",
  "is-directory": "Is a directory",
  "unsupported": "Operation not supported",
  "invalid": "Invalid argument",
  "locked": "Another process has it open for writing",
  "no-space": "No space left on device",
  "truncated": "The file is shorter than it was when it was opened",
  "corrupt": "The image is corrupt",
  "closed": "The image was closed",
  "io": "Input/output error",
};

/** A failure of the host. */
export class BlockError extends Error {
  /** Always `"BlockError"`: what a stack trace begins with. */
  override readonly name = "BlockError";
  /** What kind of failure it was. */
  readonly kind: BlockErrorKind;
  /** Name of the image, as the user gave it. */
  readonly path: string;
  /** What was being done. */
  readonly operation: BlockOperation;
  /** Byte offset in the file, where there is one. */
  readonly offset: number | undefined;
  /** What went wrong, in plain words. */
  readonly reason: string;
  /** What the user can do about it. */
  readonly hint: string | undefined;

  /** Makes the message of the facts. */
  constructor(facts: BlockErrorFacts) {
    const reason = facts.reason ?? REASONS[facts.kind];
    const what = facts.operation === "open" || facts.operation === "create"
      ? `Could not ${facts.operation} '${facts.path}'`
      : `${facts.operation} of '${facts.path}'`;
    const where = facts.offset === undefined ? "" : ` at offset ${facts.offset}`;
    super(`${what}${where}: ${reason}`, facts.cause === undefined ? undefined : { cause: facts.cause });
    this.kind = facts.kind;
    this.path = facts.path;
    this.operation = facts.operation;
    this.offset = facts.offset;
    this.reason = reason;
    this.hint = facts.hint;
  }

  /** Makes a BlockError of what a host function threw. */
  static from(cause: unknown, facts: Omit<BlockErrorFacts, "kind" | "cause">): BlockError {
    if (cause instanceof BlockError) return cause;
    const kind = kindOf(cause);
    const special = REASON_BY_CODE[(cause as { code?: string } | undefined)?.code ?? ""];
    const reason = kind === "io" && cause instanceof Error ? `Input/output error (${cause.message})` : special;
    return new BlockError({ ...facts, kind, reason: facts.reason ?? reason, cause });
  }
}

/**
 * What the user said about an image makes no sense: a driver or an option that does not exist, or a value that it can't
 * have. The reason is a whole sentence, which QEMU prints without the name of the file.
 */
export class BlockOptionError extends BlockError {
  /** Takes the name of what was to be opened, and what is wrong. */
  constructor(path: string, reason: string, hint?: string) {
    super({ kind: "unsupported", path, operation: "open", reason, hint });
  }
}

const KIND_BY_CODE: Record<string, BlockErrorKind> = {
  ENOENT: "not-found",
  ENOTDIR: "not-found",
  EACCES: "not-permitted",
  EPERM: "not-permitted",
  EROFS: "not-permitted",
  EISDIR: "is-directory",
  ENOSPC: "no-space",
  EDQUOT: "no-space",
  EFBIG: "no-space",
  EINVAL: "invalid",
  EOPNOTSUPP: "unsupported",
  ENOSYS: "unsupported",
};

/** Where the kind's own words would mislead. */
const REASON_BY_CODE: Record<string, string> = {
  ENOTDIR: "Not a directory",
  EROFS: "Read-only file system",
  EDQUOT: "Disk quota exceeded",
  EFBIG: "File too large",
};

function kindOf(cause: unknown): BlockErrorKind {
  const { name, code } = (cause ?? {}) as { name?: string; code?: string };
  if (name === "NotCapable") return "not-capable";
  if (code !== undefined && code in KIND_BY_CODE) return KIND_BY_CODE[code];
  if (name === "NotFound") return "not-found";
  if (name === "PermissionDenied") return "not-permitted";
  if (name === "IsADirectory") return "is-directory";
  return "io";
}
