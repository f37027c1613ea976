//! One file as text: reading it with guards, and where bytes stand in lines. Never interprets YAML.

use std::path::{Path, PathBuf};

use super::report::{Code, Problem};

/// Longest file: a configuration is written by people; a hundred tables make some ten kilobytes.
const BYTES_MAX: u64 = 1 << 20;

/// Words that make a key's value secret wherever it stands: such lines are masked before anything is shown.
const SECRET_WORDS: [&str; 10] =
    ["bearer", "private_key", "password", "passwd", "secret", "token", "api_key", "apikey", "authorization", "credential"];

/// A place in a document: bytes of [`Document::text`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) len: usize,
}

/// A file that was read.
#[derive(Debug)]
pub(crate) struct Document {
    /// As the user named it, for messages.
    pub(crate) name: String,
    /// Where relative paths in it begin.
    pub(crate) dir: PathBuf,
    /// UTF-8, without byte-order mark, line ends as in the file; of a file with an overlay both, one behind the other.
    pub(crate) text: String,
    /// Where the overlay's text begins, and its name.
    pub(crate) overlay: Option<(usize, String)>,
}

impl Document {
    /// Reads a file; everything that makes it unfit to be parsed is a problem of its own.
    pub(crate) fn read(path: &Path) -> Result<Document, Problem> {
        let name = path.display().to_string();
        let failed = |code, message: String, help: &str| Problem::of_file(&name, code, message, Some(help.to_owned()));
        let unreadable = |error: std::io::Error| {
            failed(Code::UnreadableFile, format!("cannot read the file: {error}"), "name an existing file that this user may read")
        };
        let metadata = std::fs::metadata(path).map_err(unreadable)?;
        if metadata.is_dir() {
            return Err(failed(Code::UnreadableFile, "this is a directory".to_owned(), "name the file in it"));
        }
        let too_large = || {
            failed(
                Code::TooLarge,
                format!("the file is larger than {BYTES_MAX} bytes"),
                "is this really the configuration? Split connectors into files of their own",
            )
        };
        if metadata.len() > BYTES_MAX {
            return Err(too_large());
        }
        // A pipe or device says nothing of its size beforehand.
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::io::Read::take(std::fs::File::open(path).map_err(unreadable)?, BYTES_MAX + 1), &mut bytes)
            .map_err(unreadable)?;
        if bytes.len() as u64 > BYTES_MAX {
            return Err(too_large());
        }
        let dir = path.parent().unwrap_or(Path::new("")).to_owned();
        Document::from_bytes(name, dir, bytes)
    }

    /// A document from bytes.
    pub(crate) fn from_bytes(name: String, dir: PathBuf, mut bytes: Vec<u8>) -> Result<Document, Problem> {
        if bytes.starts_with(b"\xEF\xBB\xBF") {
            bytes.drain(..3);
        }
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                let sound = String::from_utf8_lossy(&error.as_bytes()[..at]).into_owned();
                let document = Document { name, dir, text: sound, overlay: None };
                let help = Some("save it as UTF-8".to_owned());
                let span = Span { start: at, len: 0 };
                return Err(document.standing(document.problem(
                    Code::NotUtf8,
                    span,
                    "the file is not UTF-8 text",
                    "invalid byte after this",
                    help,
                )));
            }
        };
        let document = Document { name, dir, text, overlay: None };
        let control = document.text.char_indices().find(|(_, c)| c.is_control() && !matches!(c, '\n' | '\r' | '\t'));
        if let Some((start, c)) = control {
            let help = Some("remove it; in a double-quoted string it can be written as an escape".to_owned());
            let message = format!("control character U+{:04X} in the file", u32::from(c));
            let span = Span { start, len: c.len_utf8() };
            return Err(document.standing(document.problem(Code::ControlCharacter, span, message, "here", help)));
        }
        Ok(document)
    }

    /// A problem at a place in this document.
    pub(crate) fn problem(
        &self,
        code: Code,
        span: Span,
        message: impl Into<String>,
        label: impl Into<String>,
        help: Option<String>,
    ) -> Problem {
        let start = floor_boundary(&self.text, span.start.min(self.text.len()));
        let end = floor_boundary(&self.text, (span.start + span.len).min(self.text.len())).max(start);
        // A span over several lines is shown by its first.
        let first_line = self.text[start..end].find(['\n', '\r']).unwrap_or(end - start);
        // Where the file that this place belongs to begins.
        let (base, file) = match &self.overlay {
            Some((at, overlay)) if start >= *at => (*at, overlay),
            _ => (0, &self.name),
        };
        let (line, column) = line_column(&self.text[base..], start - base);
        Problem {
            code,
            message: message.into(),
            file: file.clone(),
            line,
            column,
            span: Span { start: start - base, len: first_line },
            label: label.into(),
            help,
            source: None,
        }
    }

    /// The problem with the masked text of this document, to be shown when the document is gone.
    pub(crate) fn standing(&self, problem: Problem) -> Problem {
        Problem { source: Some(self.shown_of(&problem.file).into()), ..problem }
    }

    /// The masked text of the file of this name: of the overlay, or of the file below it.
    pub(crate) fn shown_of(&self, file: &str) -> String {
        let shown = self.shown();
        match &self.overlay {
            Some((at, overlay)) if overlay == file => shown[*at..].to_owned(),
            Some((at, _)) => shown[..*at].to_owned(),
            None => shown,
        }
    }

    /// Lays another file over this one: its text comes behind. Answers by how much its places move.
    pub(crate) fn lay_over(&mut self, overlay: Document) -> usize {
        let at = self.text.len();
        self.text.push_str(&overlay.text);
        self.overlay = Some((at, overlay.name));
        at
    }

    /// The text with everything that may be secret masked, byte for byte as long as the original, so that spans keep
    /// their meaning: passwords in URLs, and values of keys that sound like secrets.
    pub(crate) fn shown(&self) -> String {
        let mut shown = String::with_capacity(self.text.len());
        for line in self.text.split_inclusive('\n') {
            shown.push_str(&mask_line(line));
        }
        shown
    }

    /// Where secrets stand: what would be masked and is neither a reference, an expression nor what becomes of a column.
    pub(crate) fn literal_secrets(&self) -> Vec<Span> {
        let shown = self.shown();
        let (text, shown) = (self.text.as_bytes(), shown.as_bytes());
        let mut found = Vec::new();
        let mut start = 0;
        for line in self.text.split_inclusive('\n') {
            let bytes = start..start + line.len();
            start = bytes.end;
            let masked = |at: &usize| text[*at] != shown[*at] && !b"{}[],".contains(&text[*at]);
            let Some(first) = bytes.clone().find(masked) else { continue };
            let len = (first..bytes.end).take_while(|at| text[*at] != shown[*at]).count();
            let word = self.text.get(first..first + len).unwrap_or_default();
            let is_policy = ["pass", "drop", "null", "mask", "hash"].contains(&word) || word.starts_with("truncate(");
            if !line.contains("{{") && !is_policy {
                found.push(Span { start: first, len });
            }
        }
        found
    }
}

/// 1-based line and column (in characters) of a byte.
fn line_column(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..at];
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

fn floor_boundary(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Masks what looks secret in one line, keeping its length and references such as `${env:NAME}`.
fn mask_line(line: &str) -> String {
    let mut bytes = line.as_bytes().to_vec();
    let mut mask = |from: usize, to: usize| {
        let mut at = from;
        while at < to {
            if line[at..to].starts_with("${")
                && let Some(end) = line[at..to].find('}')
            {
                at += end + 1;
                continue;
            }
            let c = line[at..].chars().next().map_or(1, char::len_utf8);
            if !matches!(bytes[at], b'\n' | b'\r' | b'"' | b'\'' | b' ') {
                bytes[at..at + c].fill(b'*');
            }
            at += c;
        }
    };
    // user:password@ in any URL; the password may itself hold an `@` or a slash, so the last `@` of the word counts.
    let mut from = 0;
    while let Some(found) = line[from..].find("://") {
        let authority = from + found + 3;
        let word_end = line[authority..].find([' ', '"', '\'', '\n', '\r']).map_or(line.len(), |i| authority + i);
        if let Some(at) = line[authority..word_end].rfind('@') {
            let user_end = line[authority..authority + at].find(':').map_or(authority + at, |i| authority + i + 1);
            mask(user_end, authority + at);
        }
        if let Some(query) = line[authority..word_end].find('?') {
            let query = authority + query + 1;
            for (start, parameter) in pieces(&line[query..word_end]) {
                if let Some((name, value)) = parameter.split_once('=')
                    && is_secret(name)
                {
                    mask(query + start + name.len() + 1, query + start + name.len() + 1 + value.len());
                }
            }
        }
        from = word_end.max(authority);
    }
    if let Some(colon) = line.find(':') {
        let lower = line.to_ascii_lowercase();
        for word in SECRET_WORDS {
            if let Some(at) = lower.find(word) {
                // From the colon that follows the word: `{user: x, password: y}` keeps the user.
                // A colon inside a reference that follows belongs to that.
                if let Some(after) = line[at..].find(':').filter(|after| !line[at..at + after].contains("${")) {
                    mask(at + after + 1, line.len());
                } else if colon < at {
                    // `Authorization`-like text as a value: keep it, it is a name.
                }
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| "*".repeat(line.len()))
}

fn pieces(query: &str) -> impl Iterator<Item = (usize, &str)> {
    query.split('&').scan(0, |at, piece| {
        let start = *at;
        *at += piece.len() + 1;
        Some((start, piece))
    })
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_WORDS.iter().any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literal_secrets_are_told_from_references_expressions_and_policies() {
        let lines = [
            ("url: postgres://u:hunter2@h/d", Some("hunter2")),
            ("auth: {bearer: hunter2}", Some("hunter2")),
            ("hash_key: {id: k1, secret: \"${env:KEY}\"}", None),
            ("token: \"{{ after.token }}\"", None),
            ("password_hash: drop", None),
            ("url: postgres://u:${file:pw}@h/d", None),
        ];
        for (line, secret) in lines {
            let document =
                Document::from_bytes("x".to_owned(), PathBuf::new(), format!("version: 1\n{line}\n").into_bytes()).expect("a text");
            let found: Vec<&str> =
                document.literal_secrets().iter().map(|s| document.text[s.start..].split(['}', '@', '\n']).next().unwrap_or("")).collect();
            assert_eq!(found, secret.into_iter().collect::<Vec<_>>(), "{line}");
        }
    }

    #[test]
    fn secrets_are_masked_and_lengths_kept() {
        for (line, expected) in [
            ("url: postgres://u:pa@s/w@h/db", "url: postgres://u:******@h/db"),
            ("url: postgres://u:${env:PW}@h/db", "url: postgres://u:${env:PW}@h/db"),
            ("url: 'postgres://h/db?password=x1&a=b'", "url: 'postgres://h/db?password=**&a=b'"),
            ("  password: hunter2", "  password: *******"),
            ("  h: {user: me, api_key: \"ké\"}", "  h: {user: me, api_key: \"***\"*"),
            ("  authorization: Bearer ${file:x}", "  authorization: ****** ${file:x}"),
            ("slot: shop", "slot: shop"),
        ] {
            let masked = mask_line(line);
            assert_eq!(masked, expected);
            assert_eq!(masked.len(), line.len());
        }
    }
}
