//! Reads file names as the receiving system will read them, even if they are disguised.
//!
//! Programs read a name in different ways, so a name has several readings: with percent-encoding decoded, cut at a NUL, cut
//! at the colon of an alternate data stream, without invisible characters, without the trailing dots and spaces that Windows
//! drops, after the last path separator, and in lower case.

/// Extensions of files that a system runs when they are opened.
const RUNNABLE_EXTENSIONS: [&str; 47] = [
    "ade", "adp", "app", "appx", "bat", "chm", "cmd", "com", "cpl", "dll", "elf", "exe", "hta",
    "ins", "isp", "jar", "js", "jse", "lnk", "mde", "msc", "msi", "msix", "msp", "mst", "ocx",
    "pif", "ps1", "psm1", "reg", "scr", "sct", "sh", "shb", "so", "sys", "url", "vb", "vbe", "vbs",
    "vxd", "wsc", "wsf", "wsh", "xll", "efi", "drv",
];

/// Extensions that make a name look like that of a document.
const DOCUMENT_EXTENSIONS: [&str; 25] = [
    "avi", "bmp", "csv", "doc", "docm", "docx", "gif", "htm", "html", "jpeg", "jpg", "mov", "mp3",
    "mp4", "odt", "pdf", "png", "ppt", "pptx", "rtf", "txt", "wav", "xls", "xlsm", "xlsx",
];

/// Characters of a name that are read from each end, to bound the work. File systems accept 255 at most.
const NAME_END_CHARACTERS_MAX: usize = 1000;

/// A parsed file name.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Name {
    /// The readings of the name, all different, the plainest first.
    readings: Vec<String>,
    /// The name contains characters that only serve to disguise it: a text direction override, or a NUL. Or the name is
    /// longer than file systems accept, so that each program cuts it in its own way.
    pub(super) is_disguised: bool,
}

impl Name {
    /// Reads a name. Only the first and the last 1,000 characters of a longer name are read; the extension is at the end.
    pub(super) fn read(raw: &str) -> Self {
        let last = raw.rsplit(['/', '\\']).next().unwrap_or_default();
        let mut name = Self {
            readings: Vec::new(),
            is_disguised: raw.contains(['\0', '\u{202d}', '\u{202e}'])
                || last.chars().nth(NAME_END_CHARACTERS_MAX).is_some(),
        };
        let middle = raw.char_indices().nth(NAME_END_CHARACTERS_MAX);
        name.read_piece(middle.map_or(raw, |(end, _)| &raw[..end]));
        if middle.is_some() {
            let start = raw.char_indices().nth_back(NAME_END_CHARACTERS_MAX - 1);
            name.read_piece(start.map_or(raw, |(start, _)| &raw[start..]));
        }
        name
    }

    fn read_piece(&mut self, raw: &str) {
        for decoded in [raw.to_owned(), percent_decoded(raw)] {
            let (before, _) = decoded.split_once('\0').unwrap_or((&decoded, ""));
            for cut in [&decoded, before] {
                let plain = plain(cut);
                let stream = plain.split(':').next().unwrap_or_default();
                for reading in [plain.as_str(), stream] {
                    let reading = reading.trim_end_matches(trailing);
                    if !reading.is_empty() && !self.readings.iter().any(|known| known == reading) {
                        self.readings.push(reading.to_owned());
                    }
                }
            }
        }
    }

    /// The last extension of each reading.
    pub(super) fn extensions(&self) -> impl Iterator<Item = &str> {
        self.readings
            .iter()
            .filter_map(|reading| Some(reading.rsplit_once('.')?.1.trim()))
    }

    /// Whether opening the file runs it.
    pub(super) fn runs(&self) -> bool {
        self.extensions()
            .any(|extension| RUNNABLE_EXTENSIONS.contains(&extension))
    }

    /// Whether the name looks like that of a document and the file runs, such as `invoice.pdf.exe`.
    pub(super) fn has_double_extension(&self) -> bool {
        self.readings.iter().any(|reading| {
            let mut extensions = reading.rsplit('.').map(|e| e.trim_matches([' ', '_']));
            let last = extensions.next().unwrap_or_default();
            let shown = extensions.find(|extension| !extension.is_empty());
            let has_stem = extensions.next().is_some();
            RUNNABLE_EXTENSIONS.contains(&last)
                && has_stem
                && shown.is_some_and(|shown| DOCUMENT_EXTENSIONS.contains(&shown))
        })
    }
}

fn trailing(c: char) -> bool {
    c == '.' || c == '"' || c.is_whitespace()
}

/// The last path component in lower case. Characters that look like a dot become dots, and invisible characters are removed.
fn plain(name: &str) -> String {
    let name: String = name
        .chars()
        .filter(|c| !is_invisible(*c))
        .map(|c| match c {
            '\u{ff0e}' | '\u{3002}' | '\u{ff61}' | '\u{2024}' | '\u{fe52}' => '.',
            c => c,
        })
        .collect();
    let trimmed = name.trim_end_matches(trailing);
    let last = trimmed.rsplit(['/', '\\']).next().unwrap_or_default();
    last.trim().to_lowercase()
}

fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{ad}')
}

fn percent_decoded(name: &str) -> String {
    let mut decoded = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((&octet, tail)) = rest.split_first() {
        rest = tail;
        let value = match (octet, tail) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)),
            _ => None,
        };
        if let Some((high, low)) = value {
            decoded.push(high * 16 + low);
            rest = &tail[2..];
        } else {
            decoded.push(octet);
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disguise does not hide that a file runs.
    #[test]
    fn disguises_do_not_hide_an_extension() {
        let names = [
            "a.exe",
            "A.EXE",
            "a.exe. .",
            "a.exe\0.pdf",
            "a.pdf\0.exe",
            "a%2Eexe",
            "a%2eexe%00.pdf",
            "dir/a.exe",
            "..\\a.exe",
            "a.exe:stream.txt",
            "a.exe::$DATA",
            "gpj.\u{202e}fdp.exe",
            "a.e\u{200b}xe",
            "a\u{ff0e}exe",
            "a.exe\"",
            "a.\texe",
        ];
        for name in names {
            assert!(Name::read(name).runs(), "{name:?}");
        }
        for name in ["a.pdf", "exe", "a.exe.pdf", "", "...", "100%.txt"] {
            assert!(!Name::read(name).runs(), "{name:?}");
        }
    }

    /// The extension of a document before a runnable one is a trick. A dot in a version number is not.
    #[test]
    fn double_extensions_are_recognised() {
        for name in [
            "invoice.pdf.exe",
            "invoice.pdf      .exe",
            "scan.jpg__.scr",
            "x.doc.. .js",
        ] {
            assert!(Name::read(name).has_double_extension(), "{name}");
        }
        for name in [
            "setup-1.2.exe",
            "a.tar.gz",
            "a.exe.pdf",
            "jquery.min.js",
            "pdf.exe",
        ] {
            assert!(!Name::read(name).has_double_extension(), "{name}");
        }
    }

    /// Text direction overrides and NULs have no legitimate use in a file name. Marks of right-to-left scripts have one.
    #[test]
    fn overrides_are_disguises() {
        assert!(Name::read("\u{202e}fdp.exe").is_disguised);
        assert!(Name::read("a\0b").is_disguised);
        assert!(!Name::read("\u{200f}שלום.pdf").is_disguised);
    }

    /// A long name keeps its extension. A long path is usual, a long name is a disguise.
    #[test]
    fn long_names_keep_their_extensions() {
        let padding = "é".repeat(2 * NAME_END_CHARACTERS_MAX);
        let (path, spaces) = (
            "a/".repeat(NAME_END_CHARACTERS_MAX),
            " ".repeat(2 * NAME_END_CHARACTERS_MAX),
        );
        for (name, is_disguised) in [
            (format!("{path}evil.exe"), false),
            (format!("{path}evil.exe\0.txt"), true),
            (format!("{padding}.exe"), true),
            (format!("evil.exe{spaces}"), true),
            (format!("evil.exe:{padding}.txt"), true),
        ] {
            let read = Name::read(&name);
            assert!(read.runs(), "{} characters", name.len());
            assert_eq!(read.is_disguised, is_disguised);
        }
        let path = Name::read(&format!("{path}a.pdf"));
        assert!(!path.runs() && !path.is_disguised);
    }
}
