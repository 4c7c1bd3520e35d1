/**
 * Numbers and layouts of the virtio block device (VIRTIO 1.4 §5.2), shared by driver and device.
 *
 * @module
 */

/** Device ID (§5.2.1). */
export const VIRTIO_ID_BLOCK = 2;

// Feature bits (§5.2.3).

/** `size_max` says how long a segment may be. */
export const VIRTIO_BLK_F_SIZE_MAX = 1;
/** `seg_max` says how many segments a request may have. */
export const VIRTIO_BLK_F_SEG_MAX = 2;
/** Cylinders, heads and sectors. */
export const VIRTIO_BLK_F_GEOMETRY = 4;
/** The disk cannot be written. */
export const VIRTIO_BLK_F_RO = 5;
/** `blk_size` says how large a logical block is. */
export const VIRTIO_BLK_F_BLK_SIZE = 6;
/** The driver can flush the cache. */
export const VIRTIO_BLK_F_FLUSH = 9;
/** Physical block size and optimal I/O sizes. */
export const VIRTIO_BLK_F_TOPOLOGY = 10;
/** The driver can switch the cache between writeback and writethrough. */
export const VIRTIO_BLK_F_CONFIG_WCE = 11;
/** There can be more than one request queue. */
export const VIRTIO_BLK_F_MQ = 12;
/** Requests of type DISCARD. */
export const VIRTIO_BLK_F_DISCARD = 13;
/** Requests of type WRITE_ZEROES. */
export const VIRTIO_BLK_F_WRITE_ZEROES = 14;
/** Requests of type GET_LIFETIME. */
export const VIRTIO_BLK_F_LIFETIME = 15;
/** Requests of type SECURE_ERASE. */
export const VIRTIO_BLK_F_SECURE_ERASE = 16;

/** Names of the feature bits that belong to the block device. */
export const BLK_FEATURE_NAMES: Readonly<Record<number, string>> = {
  0: "BARRIER",
  [VIRTIO_BLK_F_SIZE_MAX]: "SIZE_MAX",
  [VIRTIO_BLK_F_SEG_MAX]: "SEG_MAX",
  [VIRTIO_BLK_F_GEOMETRY]: "GEOMETRY",
  [VIRTIO_BLK_F_RO]: "RO",
  [VIRTIO_BLK_F_BLK_SIZE]: "BLK_SIZE",
  7: "SCSI",
  [VIRTIO_BLK_F_FLUSH]: "FLUSH",
  [VIRTIO_BLK_F_TOPOLOGY]: "TOPOLOGY",
  [VIRTIO_BLK_F_CONFIG_WCE]: "CONFIG_WCE",
  [VIRTIO_BLK_F_MQ]: "MQ",
  [VIRTIO_BLK_F_DISCARD]: "DISCARD",
  [VIRTIO_BLK_F_WRITE_ZEROES]: "WRITE_ZEROES",
  [VIRTIO_BLK_F_LIFETIME]: "LIFETIME",
  [VIRTIO_BLK_F_SECURE_ERASE]: "SECURE_ERASE",
  17: "ZONED",
};

// Request types (§5.2.6).

/** Read. */
export const VIRTIO_BLK_T_IN = 0;
/** Write. */
export const VIRTIO_BLK_T_OUT = 1;
/** Make completed writes stable. */
export const VIRTIO_BLK_T_FLUSH = 4;
/** Read the device ID string. */
export const VIRTIO_BLK_T_GET_ID = 8;
/** Read how worn the medium is. */
export const VIRTIO_BLK_T_GET_LIFETIME = 10;
/** Say that the contents of ranges are not needed any more. */
export const VIRTIO_BLK_T_DISCARD = 11;
/** Make ranges read as zeros. */
export const VIRTIO_BLK_T_WRITE_ZEROES = 13;
/** Erase ranges for good. */
export const VIRTIO_BLK_T_SECURE_ERASE = 14;

// Status bytes (§5.2.6).

/** Done. */
export const VIRTIO_BLK_S_OK = 0;
/** Failed, on the host or because the driver broke a rule. */
export const VIRTIO_BLK_S_IOERR = 1;
/** The device does not know such a request. */
export const VIRTIO_BLK_S_UNSUPP = 2;

/** The printed form of a status byte. */
export function statusName(status: number): string {
  return ["OK", "IOERR", "UNSUPP"][status] ?? `status ${status}`;
}

/** Unit of `sector` and of all sector counts, in bytes, whatever the block size. */
export const SECTOR_SIZE = 512;
/** Size of the request header: le32 type, le32 reserved, le64 sector. */
export const HEADER_SIZE = 16;
/** Size of a device ID string. */
export const ID_SIZE = 20;
/** Size of struct virtio_blk_lifetime: three le16. */
export const LIFETIME_SIZE = 6;
/** Size of struct virtio_blk_discard_write_zeroes: le64 sector, le32 num_sectors, le32 flags. */
export const RANGE_SIZE = 16;
/** Flag of such a range: the space may be given back. */
export const RANGE_F_UNMAP = 1;

/** A field of the configuration space: offset and width in bytes, and the feature that it depends on. */
export interface ConfigField {
  /** The spec's name of the field. */
  readonly name: string;
  /** Where it is in the configuration space, in bytes. */
  readonly offset: number;
  /** How long it is, in bytes. */
  readonly width: 1 | 2 | 4 | 8;
  /** The feature bit without which it does not exist. */
  readonly feature?: number;
}

/** Fields of the configuration space (§5.2.4), in order. `writeback` is the only one that a driver writes. */
export const CONFIG_FIELDS = [
  { name: "capacity", offset: 0, width: 8 },
  { name: "size_max", offset: 8, width: 4, feature: VIRTIO_BLK_F_SIZE_MAX },
  { name: "seg_max", offset: 12, width: 4, feature: VIRTIO_BLK_F_SEG_MAX },
  { name: "cylinders", offset: 16, width: 2, feature: VIRTIO_BLK_F_GEOMETRY },
  { name: "heads", offset: 18, width: 1, feature: VIRTIO_BLK_F_GEOMETRY },
  { name: "sectors", offset: 19, width: 1, feature: VIRTIO_BLK_F_GEOMETRY },
  { name: "blk_size", offset: 20, width: 4, feature: VIRTIO_BLK_F_BLK_SIZE },
  { name: "physical_block_exp", offset: 24, width: 1, feature: VIRTIO_BLK_F_TOPOLOGY },
  { name: "alignment_offset", offset: 25, width: 1, feature: VIRTIO_BLK_F_TOPOLOGY },
  { name: "min_io_size", offset: 26, width: 2, feature: VIRTIO_BLK_F_TOPOLOGY },
  { name: "opt_io_size", offset: 28, width: 4, feature: VIRTIO_BLK_F_TOPOLOGY },
  { name: "writeback", offset: 32, width: 1, feature: VIRTIO_BLK_F_CONFIG_WCE },
  { name: "num_queues", offset: 34, width: 2, feature: VIRTIO_BLK_F_MQ },
  { name: "max_discard_sectors", offset: 36, width: 4, feature: VIRTIO_BLK_F_DISCARD },
  { name: "max_discard_seg", offset: 40, width: 4, feature: VIRTIO_BLK_F_DISCARD },
  { name: "discard_sector_alignment", offset: 44, width: 4, feature: VIRTIO_BLK_F_DISCARD },
  { name: "max_write_zeroes_sectors", offset: 48, width: 4, feature: VIRTIO_BLK_F_WRITE_ZEROES },
  { name: "max_write_zeroes_seg", offset: 52, width: 4, feature: VIRTIO_BLK_F_WRITE_ZEROES },
  { name: "write_zeroes_may_unmap", offset: 56, width: 1, feature: VIRTIO_BLK_F_WRITE_ZEROES },
  { name: "max_secure_erase_sectors", offset: 60, width: 4, feature: VIRTIO_BLK_F_SECURE_ERASE },
  { name: "max_secure_erase_seg", offset: 64, width: 4, feature: VIRTIO_BLK_F_SECURE_ERASE },
  { name: "secure_erase_sector_alignment", offset: 68, width: 4, feature: VIRTIO_BLK_F_SECURE_ERASE },
] as const satisfies readonly ConfigField[];

/** Name of a field of the configuration space. */
export type ConfigFieldName = typeof CONFIG_FIELDS[number]["name"];

/** Size of the configuration space without the zoned characteristics, which vblk does not offer. */
export const CONFIG_SIZE = 72;

/** The field called `name`. */
export function configField(name: ConfigFieldName): ConfigField {
  return CONFIG_FIELDS.find((field) => field.name === name)!;
}
