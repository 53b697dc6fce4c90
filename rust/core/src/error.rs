//! What can be wrong with the input of a kernel.

use std::fmt;

/// A refusal. `Display` gives the cause, [`Error::remedy`] what to do about it.
#[derive(Clone, Debug, PartialEq)]
pub enum Error {
    /// A row id outside the seen matrix.
    RowRange { row: i64, rows: usize },
    /// An item id outside the catalogue.
    ItemRange {
        what: &'static str,
        row: usize,
        item: i64,
        items: usize,
    },
    /// A row without any unseen item.
    SeenEverything { row: usize, items: usize },
    /// A row whose unseen items all have weight zero.
    NoWeight { row: usize },
    /// NaN or infinity.
    NotFinite { what: &'static str, row: usize },
    /// A weight that is negative, NaN or infinite.
    BadWeight { row: usize, column: usize, value: f64 },
    /// A scale of codes that is negative, NaN or infinite.
    BadScale { row: usize, scale: f32 },
    /// A code that stands for no level.
    NoLevel { row: usize },
    /// Finite factors so large that a score would not be.
    Overflow { queries: f32, items: f32, dim: usize },
    /// A name that was there before.
    Twice { first: usize, again: usize },
    /// Sizes that do not go together.
    Shape(String),
    /// A result of so many bytes that the machine does not give.
    Memory { bytes: usize },
    /// The caller asked to stop (Ctrl-C).
    Interrupted,
}

impl Error {
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Error::RowRange { .. } => {
                Some("rows are row numbers, from 0: of `seen`, or of the queries where there is none")
            }
            Error::SeenEverything { .. } => Some("leave the row out, or pass exhausted=\"mask\" to get -1 for it"),
            Error::NoWeight { .. } => {
                Some("give every item a positive weight, or pass exhausted=\"mask\" to get -1 for the row")
            }
            Error::NotFinite { .. } => Some("all values must be finite: look for a diverged model"),
            Error::BadWeight { .. } => Some("weights must be finite and at least 0"),
            Error::BadScale { .. } => Some("scales must be finite and at least 0"),
            Error::NoLevel { .. } => Some("codes of eight bits run from -127 to 127"),
            Error::Overflow { .. } => Some("scale the factors down"),
            Error::Twice { .. } => Some("names must be distinct"),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::RowRange { row, rows } => write!(f, "row {row} is outside 0 to {}", *rows as i64 - 1),
            Error::ItemRange { what, row, item, items } => {
                write!(
                    f,
                    "{what}: row {row} holds item {item}; allowed: 0 to {}",
                    *items as i64 - 1
                )
            }
            Error::SeenEverything { row, items } => {
                write!(f, "row {row} has seen all {items} items: there is no negative to draw")
            }
            Error::NoWeight { row } => {
                write!(
                    f,
                    "row {row}: every unseen item has weight 0: there is no negative to draw"
                )
            }
            Error::NotFinite { what, row } => write!(f, "{what}: row {row} holds NaN or infinity"),
            Error::Twice { first, again } => write!(f, "names {first} and {again} are the same"),
            Error::BadWeight { row, column, value } => {
                write!(f, "weights: row {row}, column {column} is {value}")
            }
            Error::BadScale { row, scale } => write!(f, "codes: the scale of row {row} is {scale}"),
            Error::NoLevel { row } => write!(f, "codes: row {row} holds -128"),
            Error::Overflow { queries, items, dim } => write!(
                f,
                "scores would overflow float32: queries up to {queries:e}, items up to {items:e}, dim {dim}"
            ),
            Error::Shape(text) => f.write_str(text),
            Error::Memory { bytes } => write!(f, "{bytes} bytes are not to be had"),
            Error::Interrupted => f.write_str("interrupted"),
        }
    }
}

impl std::error::Error for Error {}
