//! Messages for tests.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// The EICAR test file, put together here so that this source is not one itself.
pub fn eicar() -> Vec<u8> {
    let (head, tail) = (
        r"X5O!P%@AP[4\PZX54(P^)7CC)7}$",
        "EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*",
    );
    format!("{head}{tail}").into_bytes()
}

/// Base 64 in lines, as mail has it.
pub fn base64_lines(octets: &[u8]) -> String {
    let text = STANDARD.encode(octets);
    let lines = text
        .as_bytes()
        .chunks(76)
        .map(|line| String::from_utf8_lossy(line).into_owned());
    lines.collect::<Vec<_>>().join("\r\n")
}

/// A message with `attachment` inside `depth` multiparts.
pub fn nested(depth: usize, name: &str, attachment: &[u8]) -> Vec<u8> {
    let mut out =
        String::from("From: a@a.test\r\nTo: b@b.test\r\nSubject: nested\r\nMIME-Version: 1.0\r\n");
    for level in 0..depth {
        out +=
            &format!("Content-Type: multipart/mixed; boundary=\"b{level}\"\r\n\r\n--b{level}\r\n");
    }
    out += &format!(
        "Content-Type: application/octet-stream; name=\"{name}\"\r\nContent-Disposition: attachment; filename=\"{name}\"\r\n\
         Content-Transfer-Encoding: base64\r\n\r\n{}\r\n",
        base64_lines(attachment)
    );
    for level in (0..depth).rev() {
        out += &format!("--b{level}--\r\n");
    }
    out.into_bytes()
}

/// A zip archive with one file in it.
pub fn zipped(name: &str, content: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Deflated);
    archive.start_file(name, options).expect("a zip entry");
    archive.write_all(content).expect("its content");
    archive.finish().expect("a zip archive").into_inner()
}
