//! What is wrong in configuration files: all of it at once, each with code, place, what and how to mend it.

use std::fmt;
use std::sync::Arc;

use super::document::{Document, Span};

macro_rules! codes {
    ($($variant:ident => $text:literal,)*) => {
        /// Kinds of problems; the text is stable.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Code {
            $(#[doc = concat!("`", $text, "`")] $variant,)*
        }

        impl Code {
            /// The stable dotted text.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Code::$variant => $text,)*
                }
            }
        }
    };
}

codes! {
    UnreadableFile => "config.unreadable_file",
    TooLarge => "config.too_large",
    NotUtf8 => "config.not_utf8",
    ControlCharacter => "config.control_character",
    Syntax => "config.syntax",
    Empty => "config.empty",
    TooComplex => "config.too_complex",
    UnknownKey => "config.unknown_key",
    DuplicateKey => "config.duplicate_key",
    MissingKey => "config.missing_key",
    MissingValue => "config.missing_value",
    WrongType => "config.wrong_type",
    BadVersion => "config.bad_version",
    BadName => "config.bad_name",
    BadNumber => "config.bad_number",
    BadDuration => "config.bad_duration",
    BadSize => "config.bad_size",
    BadAddress => "config.bad_address",
    BadUrl => "config.bad_url",
    BadTable => "config.bad_table",
    BadChoice => "config.bad_choice",
    BadReference => "config.bad_reference",
    SecretMissing => "config.secret_missing",
    UnknownKind => "config.unknown_kind",
    UnknownTable => "config.unknown_table",
    UnknownColumn => "config.unknown_column",
    DuplicateName => "config.duplicate_name",
    Conflict => "config.conflict",
    BadSecret => "config.bad_secret",
    BadSink => "config.bad_sink",
    BadMapping => "config.bad_mapping",
    NotColocated => "config.not_colocated",
    TestFailed => "config.test_failed",
    Untested => "config.untested",
    LiteralSecret => "config.literal_secret",
    NoIdempotency => "config.no_idempotency",
    ExposedAdmin => "config.exposed_admin",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One problem. No part of it holds a secret or the value of an environment variable.
#[derive(Clone, Debug)]
pub struct Problem {
    /// Its kind.
    pub code: Code,
    /// What is wrong.
    pub message: String,
    /// The file, as the user named it.
    pub file: String,
    /// 1-based line; 0 when the file as a whole is meant.
    pub line: usize,
    /// 1-based column in characters; 0 when the file as a whole is meant.
    pub column: usize,
    pub(crate) span: Span,
    /// What stands under the caret.
    pub(crate) label: String,
    /// How to mend it.
    pub help: Option<String>,
    /// The masked text of the file.
    pub(crate) source: Option<Arc<str>>,
}

impl Problem {
    /// A problem of a file as a whole.
    pub(crate) fn of_file(file: &str, code: Code, message: impl Into<String>, help: Option<String>) -> Problem {
        Problem {
            code,
            message: message.into(),
            file: file.to_owned(),
            line: 0,
            column: 0,
            span: Span::default(),
            label: String::new(),
            help,
            source: None,
        }
    }

    /// For machines: code, file, line, column, what, fix.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "code": self.code.as_str(), "file": self.file, "line": self.line, "column": self.column,
            "what": self.message, "fix": self.help,
        })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

impl miette::Diagnostic for Problem {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        None
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|h| Box::new(h) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        (self.line > 0).then_some(self as &dyn miette::SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = miette::LabeledSpan> + '_>> {
        let label = miette::LabeledSpan::new(Some(self.label.clone()), self.span.start, self.span.len);
        (self.line > 0).then(|| Box::new(std::iter::once(label)) as Box<dyn Iterator<Item = _>>)
    }
}

impl miette::SourceCode for Problem {
    fn read_span<'a>(
        &'a self,
        span: &miette::SourceSpan,
        before: usize,
        after: usize,
    ) -> Result<Box<dyn miette::SpanContents<'a> + 'a>, miette::MietteError> {
        let text: &str = self.source.as_deref().unwrap_or_default();
        // Spans outside of a text are not refused there.
        let start = span.offset().min(text.len());
        let inside = miette::SourceSpan::from((start, span.len().min(text.len() - start)));
        let contents = miette::SourceCode::read_span(text, &inside, before, after)?;
        Ok(Box::new(miette::MietteSpanContents::new_named(
            self.file.clone(),
            contents.data(),
            *contents.span(),
            contents.line(),
            contents.column(),
            contents.line_count(),
        )))
    }
}

/// All problems of all files.
#[derive(Clone, Debug, Default)]
pub struct Report {
    problems: Vec<Problem>,
}

impl Report {
    /// The problems, by file in the order of reading, then by place.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// Adds the problems of one document, in order of their places.
    pub(crate) fn add(&mut self, document: &Document, mut problems: Vec<Problem>) {
        if problems.is_empty() {
            return;
        }
        let over = |problem: &Problem| problem.file != document.name;
        let shown: Arc<str> = document.shown_of(&document.name).into();
        let overlay: Option<Arc<str>> = document.overlay.as_ref().map(|(_, name)| document.shown_of(name).into());
        problems.sort_by_key(|p| (over(p), p.span.start, p.line));
        for mut problem in problems {
            // What an overlay says of itself before it is laid over knows its text already.
            let text = if over(&problem) { overlay.clone().or(problem.source.take()) } else { Some(shown.clone()) };
            problem.source = text;
            self.problems.push(problem);
        }
    }

    /// Adds a problem that already knows its text, or that has none.
    pub(crate) fn push(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// Appends another report.
    pub(crate) fn extend(&mut self, other: Report) {
        self.problems.extend(other.problems);
    }

    /// For people: each problem with its line and a caret; `color` asks for ANSI colours.
    #[must_use]
    pub fn render(&self, color: bool) -> String {
        let mut text: String = self.problems.iter().map(|problem| one("error", problem, color)).collect();
        let n = self.problems.len();
        text.push_str(&format!("{n} problem{}; `tillstream explain CODE` tells more of each\n", if n == 1 { "" } else { "s" }));
        text
    }

    /// As [`render`](Self::render), of something that is no fault.
    #[must_use]
    pub fn render_warning(warning: &Problem, color: bool) -> String {
        one("warning", warning, color)
    }

    /// For machines.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        self.problems.iter().map(Problem::to_json).collect()
    }
}

fn one(level: &str, problem: &Problem, color: bool) -> String {
    let theme = if color { miette::GraphicalTheme::unicode() } else { miette::GraphicalTheme::unicode_nocolor() };
    let handler = miette::GraphicalReportHandler::new_themed(theme).with_width(110).with_context_lines(1).with_links(false);
    let place = if problem.line > 0 { format!("{}:{}:{}", problem.file, problem.line, problem.column) } else { problem.file.clone() };
    let mut text = format!("{level}[{}]: {place}\n", problem.code);
    if handler.render_report(&mut text, problem).is_err() {
        text.push_str(&format!("  {}\n", problem.message));
    }
    text.push('\n');
    text
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Report {}
