/**
 * Offline stand-in for `jsr:@std/assert`: the same names and signatures for the assertions that the tests use.
 *
 * Deep equality and the printed difference are `node:assert`'s. Where its idea of equality differs from the
 * original's it is the stricter of the two (`0` is not `-0`, a null prototype is not `Object.prototype`), so
 * that what passes here passes there.
 *
 * @module
 */

import nodeAssert from "node:assert";
import { inspect, isDeepStrictEqual } from "node:util";

/** Any class whose instances are errors; a parameter list of `any` is what lets every constructor match. */
// deno-lint-ignore no-explicit-any
type ErrorClass<E extends Error> = abstract new (...args: any[]) => E;

/** What a failed assertion throws. */
export class AssertionError extends Error {
  /** Makes one; `options.cause` is kept. */
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "AssertionError";
  }
}

/** Asserts that `expr` is truthy. */
export function assert(expr: unknown, msg = ""): asserts expr {
  if (!expr) throw new AssertionError(msg);
}

/** Fails. */
export function fail(msg?: string): never {
  throw new AssertionError(`Failed assertion${suffix(msg)}`);
}

/** Asserts that the two are deeply equal. */
export function assertEquals<T>(actual: T, expected: T, msg?: string): void {
  if (isDeepStrictEqual(actual, expected)) return;
  throw new AssertionError(`Values are not equal${suffix(msg)}\n${difference(actual, expected)}`);
}

/** Asserts that the two are not deeply equal. */
export function assertNotEquals<T>(actual: T, expected: T, msg?: string): void {
  if (!isDeepStrictEqual(actual, expected)) return;
  throw new AssertionError(
    `Expected actual: ${inspect(actual)} not to be: ${inspect(expected)}${suffix(msg)}`,
  );
}

/** Asserts that the two are the same value, as `Object.is` sees it. */
export function assertStrictEquals<T>(actual: unknown, expected: T, msg?: string): asserts actual is T {
  if (Object.is(actual, expected)) return;
  if (isDeepStrictEqual(actual, expected)) {
    const shown = inspect(actual);
    throw new AssertionError(
      `Values have the same structure but are not reference-equal${suffix(msg)}\n\n${shown}\n`,
    );
  }
  throw new AssertionError(`Values are not strictly equal${suffix(msg)}\n${difference(actual, expected)}`);
}

/** Asserts that `actual` is neither `undefined` nor `null`. */
export function assertExists<T>(actual: T, msg?: string): asserts actual is NonNullable<T> {
  if (actual !== undefined && actual !== null) return;
  throw new AssertionError(`Expected actual: "${actual}" to not be null or undefined${suffix(msg)}`);
}

/** Asserts that `actual` is an instance of the class. */
export function assertInstanceOf<
  // deno-lint-ignore no-explicit-any
  T extends abstract new (...args: any[]) => any,
>(actual: unknown, expectedType: T, msg = ""): asserts actual is InstanceType<T> {
  if (actual instanceof expectedType) return;
  throw new AssertionError(
    `Expected object to be an instance of "${expectedType.name}" but was "${kindOf(actual)}"${suffix(msg)}`,
  );
}

/** Asserts that `actual` matches the pattern. */
export function assertMatch(actual: string, expected: RegExp, msg?: string): void {
  if (expected.test(actual)) return;
  throw new AssertionError(`Expected actual: "${actual}" to match: "${expected}"${suffix(msg)}`);
}

/** Asserts that `actual` contains `expected`. */
export function assertStringIncludes(actual: string, expected: string, msg?: string): void {
  if (actual.includes(expected)) return;
  throw new AssertionError(`Expected actual: "${actual}" to contain: "${expected}"${suffix(msg)}`);
}

/** Asserts that `actual > expected`. */
export function assertGreater<T>(actual: T, expected: T, msg?: string): void {
  assertOrder(actual > expected, actual, ">", expected, msg);
}

/** Asserts that `actual >= expected`. */
export function assertGreaterOrEqual<T>(actual: T, expected: T, msg?: string): void {
  assertOrder(actual >= expected, actual, ">=", expected, msg);
}

/** Asserts that `actual < expected`. */
export function assertLess<T>(actual: T, expected: T, msg?: string): void {
  assertOrder(actual < expected, actual, "<", expected, msg);
}

/** Asserts that `actual <= expected`. */
export function assertLessOrEqual<T>(actual: T, expected: T, msg?: string): void {
  assertOrder(actual <= expected, actual, "<=", expected, msg);
}

/** Asserts that `fn` throws, and returns what it threw. */
export function assertThrows(fn: () => unknown, msg?: string): unknown;
/** Asserts that `fn` throws an `E` whose message contains `msgIncludes`, and returns it. */
export function assertThrows<E extends Error = Error>(
  fn: () => unknown,
  ErrorClass: ErrorClass<E>,
  msgIncludes?: string,
  msg?: string,
): E;
export function assertThrows<E extends Error = Error>(
  fn: () => unknown,
  errorClassOrMsg?: ErrorClass<E> | string,
  msgIncludes?: string,
  msg?: string,
): unknown {
  const expected = expectation(errorClassOrMsg, msgIncludes, msg);
  try {
    fn();
  } catch (error) {
    return checked(error, "thrown", expected);
  }
  throw new AssertionError(`Expected function to throw${suffix(expected.msg)}`);
}

/** Asserts that the promise which `fn` returns is rejected, and resolves to the reason. */
export function assertRejects(fn: () => PromiseLike<unknown>, msg?: string): Promise<unknown>;
/** Asserts that the promise is rejected with an `E` whose message contains `msgIncludes`, and resolves to it. */
export function assertRejects<E extends Error = Error>(
  fn: () => PromiseLike<unknown>,
  ErrorClass: ErrorClass<E>,
  msgIncludes?: string,
  msg?: string,
): Promise<E>;
export async function assertRejects<E extends Error = Error>(
  fn: () => PromiseLike<unknown>,
  errorClassOrMsg?: ErrorClass<E> | string,
  msgIncludes?: string,
  msg?: string,
): Promise<unknown> {
  const expected = expectation(errorClassOrMsg, msgIncludes, msg);
  let promise: PromiseLike<unknown> | undefined;
  try {
    promise = fn();
    // A function that throws before there is a promise has not rejected: its callers need a try, not a catch.
    if (typeof promise?.then !== "function") throw new TypeError("no promise was returned");
  } catch (cause) {
    throw new AssertionError(`Function throws when expected to reject${suffix(expected.msg)}`, { cause });
  }
  try {
    await promise;
  } catch (error) {
    return checked(error, "rejected", expected);
  }
  throw new AssertionError(`Expected function to reject${suffix(expected.msg)}`);
}

/** What `assertThrows` and `assertRejects` were told to expect. */
interface Expectation<E extends Error> {
  errorClass?: ErrorClass<E>;
  msgIncludes?: string;
  msg?: string;
}

function expectation<E extends Error>(
  errorClassOrMsg?: ErrorClass<E> | string,
  msgIncludes?: string,
  msg?: string,
): Expectation<E> {
  if (typeof errorClassOrMsg === "string") return { msg: errorClassOrMsg };
  return { errorClass: errorClassOrMsg, msgIncludes, msg };
}

function checked<E extends Error>(error: unknown, how: string, expected: Expectation<E>): unknown {
  const { errorClass, msgIncludes, msg } = expected;
  if (errorClass === undefined) return error;
  if (!(error instanceof Error)) {
    throw new AssertionError(`A non-Error object was ${how}${suffix(msg)}`, { cause: error });
  }
  if (!(error instanceof errorClass)) {
    const wanted = `Expected error to be instance of "${errorClass.name}", but was "${kindOf(error)}"`;
    throw new AssertionError(`${wanted}${suffix(msg)}`, { cause: error });
  }
  if (msgIncludes !== undefined && !error.message.includes(msgIncludes)) {
    const wanted = `Expected error message to include ${JSON.stringify(msgIncludes)}`;
    throw new AssertionError(`${wanted}, but got ${JSON.stringify(error.message)}${suffix(msg)}`, {
      cause: error,
    });
  }
  return error;
}

function assertOrder(
  holds: boolean,
  actual: unknown,
  operator: string,
  expected: unknown,
  msg?: string,
): void {
  if (!holds) throw new AssertionError(msg ?? `Expect ${inspect(actual)} ${operator} ${inspect(expected)}`);
}

function suffix(msg?: string): string {
  return msg ? `: ${msg}` : ".";
}

function kindOf(value: unknown): string {
  if (value === null || typeof value !== "object") return value === null ? "null" : typeof value;
  return value.constructor?.name ?? "Object";
}

/** The difference of two unequal values, as `node:assert` prints it. */
function difference(actual: unknown, expected: unknown): string {
  try {
    nodeAssert.deepStrictEqual(actual, expected);
  } catch (error) {
    return (error as Error).message;
  }
  // Object.is() separates what deepStrictEqual() does not only where the caller compares identity.
  return `${inspect(actual)} !== ${inspect(expected)}`;
}
