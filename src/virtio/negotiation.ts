/**
 * The device's answer to the features that a driver accepts (VIRTIO 1.4 §2.2.2, §6.2).
 *
 * @module
 */

import { featureNames, hasFeature, VIRTIO_F_VERSION_1 } from "./features.ts";
import type { Violation } from "./violation.ts";

/**
 * Checks what the driver accepted.
 *
 * @returns why FEATURES_OK must stay clear, or `null`
 */
export function checkAcceptedFeatures(
  offered: bigint,
  accepted: bigint,
  deviceNames: Readonly<Record<number, string>>,
): Violation | null {
  const surplus = checkOffered(offered, accepted, deviceNames);
  if (surplus !== null || hasFeature(accepted, VIRTIO_F_VERSION_1)) return surplus;
  return {
    rule: "version-1-declined",
    section: "6.1",
    expected: "a driver accepts VIRTIO_F_VERSION_1; vblk has no legacy interface",
    found: "the driver did not accept VERSION_1",
  };
}

/**
 * Checks that the driver accepted nothing but what is on offer.
 *
 * @returns what it accepted besides, or `null`
 */
export function checkOffered(
  offered: bigint,
  accepted: bigint,
  deviceNames: Readonly<Record<number, string>>,
): Violation | null {
  const surplus = accepted & ~offered;
  if (surplus === 0n) return null;
  return {
    rule: "feature-not-offered",
    section: "2.2.1",
    expected: "a driver accepts only features that the device offers",
    found: `the driver accepted ${featureNames(surplus, deviceNames).join(", ")}`,
  };
}
