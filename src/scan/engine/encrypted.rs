//! Recognises files that need a password, by their headers.
//!
//! Known limit: a 7z archive with readable file names and a packed header is not recognised.

use memchr::memmem;

/// Most headers of a RAR archive that are examined, to bound the work for an archive with very many small headers.
const RAR_HEADERS_MAX: usize = 1000;

/// The type of a file that needs a password: `rar archive`, `PDF document`, …; `None` for every other file. For zip archives,
/// the walk through the archive checks each member.
pub(super) fn kind(bytes: &[u8]) -> Option<&'static str> {
    if bytes.starts_with(b"Rar!\x1a\x07\x01\x00") {
        rar5(&bytes[8..]).then_some("rar archive")
    } else if bytes.starts_with(b"Rar!\x1a\x07\x00") {
        rar4(&bytes[7..]).then_some("rar archive")
    } else if bytes.starts_with(b"7z\xbc\xaf\x27\x1c") {
        seven_zip(bytes).then_some("7z archive")
    } else if bytes.starts_with(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1") {
        office(bytes).then_some("office document")
    } else if memmem::find(&bytes[..bytes.len().min(1024)], b"%PDF-").is_some() {
        pdf(bytes).then_some("PDF document")
    } else {
        None
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// RAR 4: blocks of CRC, type, flags and size. Type 0x73 is the archive header, type 0x74 a file header.
fn rar4(mut blocks: &[u8]) -> bool {
    const HEADERS_ENCRYPTED: u16 = 0x0080;
    const FILE_ENCRYPTED: u16 = 0x0004;
    const HAS_DATA: u16 = 0x8000;
    for _ in 0..RAR_HEADERS_MAX {
        let (Some(&kind), Some(flags), Some(size)) =
            (blocks.get(2), u16_at(blocks, 3), u16_at(blocks, 5))
        else {
            return false;
        };
        match kind {
            0x73 if flags & HEADERS_ENCRYPTED != 0 => return true,
            0x74 if flags & FILE_ENCRYPTED != 0 => return true,
            _ => {}
        }
        let mut length = usize::from(size);
        if flags & HAS_DATA != 0 {
            let data = blocks.get(7..11).and_then(|b| b.try_into().ok());
            length += data.map_or(0, u32::from_le_bytes) as usize;
        }
        // A block has at least the size of its own header. A smaller size would make the search endless.
        let Some(rest) = blocks.get(length.max(7)..) else {
            return false;
        };
        blocks = rest;
    }
    false
}

/// A RAR 5 number: seven bits per octet, the low bits first.
fn number(bytes: &mut &[u8]) -> Option<usize> {
    let mut value = 0_u64;
    for shift in (0..63).step_by(7) {
        let (&octet, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(octet & 0x7f) << shift;
        if octet & 0x80 == 0 {
            return usize::try_from(value).ok();
        }
    }
    None
}

/// RAR 5: a header of type 4 says that all further headers are encrypted. A file header (type 2) or service header (type 3) of
/// encrypted data has a record of type 1 in its extra area.
fn rar5(mut blocks: &[u8]) -> bool {
    for _ in 0..RAR_HEADERS_MAX {
        match rar5_header(&mut blocks) {
            Some(true) => return true,
            Some(false) => {}
            None => return false,
        }
    }
    false
}

fn rar5_header(blocks: &mut &[u8]) -> Option<bool> {
    const HAS_EXTRA: usize = 1;
    const HAS_DATA: usize = 2;
    *blocks = blocks.get(4..)?;
    let size = number(blocks)?;
    let mut header = blocks.get(..size)?;
    let (kind, flags) = (number(&mut header)?, number(&mut header)?);
    let extra = match flags & HAS_EXTRA {
        0 => 0,
        _ => number(&mut header)?,
    };
    let data = match flags & HAS_DATA {
        0 => 0,
        _ => number(&mut header)?,
    };
    if kind == 4 {
        return Some(true);
    }
    if matches!(kind, 2 | 3) {
        let mut records = header.get(header.len().checked_sub(extra)?..)?;
        while !records.is_empty() {
            let length = number(&mut records)?;
            let mut record = records.get(..length)?;
            if number(&mut record)? == 1 {
                return Some(true);
            }
            records = &records[length..];
        }
    }
    *blocks = blocks.get(size.checked_add(data)?..)?;
    Some(false)
}

/// 7z: the header at the end contains the identifiers of the methods; 06 F1 07 01 is AES.
fn seven_zip(bytes: &[u8]) -> bool {
    let u64_at = |at: usize| {
        let octets = bytes.get(at..at + 8)?.try_into().ok()?;
        usize::try_from(u64::from_le_bytes(octets)).ok()
    };
    let header = u64_at(12).zip(u64_at(20)).and_then(|(offset, size)| {
        let start = offset.checked_add(32)?;
        bytes.get(start..start.checked_add(size)?)
    });
    header.is_some_and(|header| memmem::find(header, b"\x06\xf1\x07\x01").is_some())
}

/// Compound files: an encrypted OOXML document is in a stream with this name (MS-OFFCRYPTO 2.3.4).
fn office(bytes: &[u8]) -> bool {
    let name: Vec<u8> = "EncryptedPackage"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    memmem::find(bytes, &name).is_some()
}

/// PDF: the trailer has an `/Encrypt` entry (ISO 32000 7.6). `/EncryptMetadata` is a different entry.
fn pdf(bytes: &[u8]) -> bool {
    const ENCRYPT_KEY: &[u8] = b"/Encrypt";
    memmem::find_iter(bytes, ENCRYPT_KEY).any(|at| {
        matches!(
            bytes.get(at + ENCRYPT_KEY.len()),
            Some(next) if next.is_ascii_whitespace() || next.is_ascii_digit() || *next == b'<'
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Encrypted files are distinguished from the same files without encryption.
    #[test]
    fn encrypted_files_are_recognised() {
        let rar4 = |flags: u8| {
            let mut file = b"Rar!\x1a\x07\x00\0\0\x73\0\0\x0d\0\0\0\0\0\0\0".to_vec();
            file.extend_from_slice(&[0, 0, 0x74, flags, 0x80, 0x20, 0, 1, 0, 0, 0]);
            file
        };
        assert_eq!(kind(&rar4(4)), Some("rar archive"));
        assert_eq!(kind(&rar4(0)), None);
        assert!(kind(b"Rar!\x1a\x07\x01\x00\0\0\0\0\x03\x04\x00\x00").is_some());
        // A file header with an extra area: one record of type 1, or of type 2.
        let rar5 = |record: u8| {
            [
                b"Rar!\x1a\x07\x01\x00\0\0\0\0\x05\x02\x01\x02\x01".as_slice(),
                &[record],
            ]
            .concat()
        };
        assert!(kind(&rar5(1)).is_some());
        assert!(kind(&rar5(2)).is_none());
        let seven = |method: &[u8]| {
            let mut file = b"7z\xbc\xaf\x27\x1c\0\x04\0\0\0\0".to_vec();
            file.extend_from_slice(&0_u64.to_le_bytes());
            file.extend_from_slice(&4_u64.to_le_bytes());
            file.extend_from_slice(&[0; 4]);
            file.extend_from_slice(method);
            file
        };
        assert!(kind(&seven(b"\x06\xf1\x07\x01")).is_some());
        assert!(kind(&seven(b"\x03\x01\x01\x00")).is_none());
        assert!(kind(b"%PDF-1.7\ntrailer <</Encrypt 5 0 R>>").is_some());
        assert!(kind(b"%PDF-1.7\ntrailer <</EncryptMetadata false>>").is_none());
    }

    /// Headers with a wrong length end the search, without a panic or an endless loop.
    #[test]
    fn headers_with_a_wrong_length_end_the_search() {
        assert_eq!(
            kind(b"Rar!\x1a\x07\x01\x00\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
            None
        );
        assert_eq!(
            kind(&[b"Rar!\x1a\x07\x00".as_slice(), &[0; 4096]].concat()),
            None
        );
        assert_eq!(kind(b"7z\xbc\xaf\x27\x1c\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), None);
    }
}
