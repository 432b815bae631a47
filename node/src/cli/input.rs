//! What `chronicle produce` reads: lines or whole files, one record each.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use bytes::Bytes;
use chronicle_client::Record;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};

/// Longest line or largest file, in bytes. A node accepts less (`limits.request-bytes-max`); this limit only keeps a
/// file without line ends from filling memory.
const RECORD_BYTES_MAX: usize = 64 << 20;

/// A record and its source in the input.
#[derive(Debug)]
pub(super) struct Sourced {
    pub(super) record: Record,
    /// The file's path, or the number of the line (1-based).
    pub(super) source: RecordSource,
    /// Bytes taken from the input, line end included.
    pub(super) input_bytes: u64,
}

/// Where a record came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RecordSource {
    File(PathBuf),
    Line(u64),
}

impl std::fmt::Display for RecordSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RecordSource::File(path) => write!(f, "{}", path.display()),
            RecordSource::Line(line) => write!(f, "line {line}"),
        }
    }
}

/// The records of a command's input, in order.
pub(super) enum Input {
    Files { paths: VecDeque<PathBuf>, keyed: bool },
    Lines { reader: Box<dyn AsyncBufRead + Send + Unpin>, key_separator: Option<Vec<u8>>, line: u64 },
}

impl Input {
    /// Reads each file as one record. With `keyed`, the path as given is the record's key.
    pub(super) fn files(paths: Vec<PathBuf>, keyed: bool) -> Self {
        Self::Files { paths: paths.into(), keyed }
    }

    /// Reads each line of a file, or of standard input, as one record, without its line feed. With a separator, the
    /// text before its first occurrence is the key.
    pub(super) async fn lines(path: Option<&Path>, key_separator: Option<Vec<u8>>) -> anyhow::Result<Self> {
        let reader: Box<dyn AsyncBufRead + Send + Unpin> = match path {
            Some(path) => {
                let file = tokio::fs::File::open(path).await.with_context(|| format!("opening {}", path.display()))?;
                Box::new(BufReader::with_capacity(256 << 10, file))
            }
            None => Box::new(BufReader::with_capacity(256 << 10, tokio::io::stdin())),
        };
        Ok(Self::Lines { reader, key_separator, line: 0 })
    }

    /// Bytes of input; `None` when the size is not known beforehand.
    pub(super) async fn size(&self) -> Option<u64> {
        let Self::Files { paths, .. } = self else { return None };
        let mut size = 0;
        for path in paths {
            size += tokio::fs::metadata(path).await.ok()?.len();
        }
        Some(size)
    }

    /// The next record; `None` at the end. Not cancellation-safe: the part of a line read so far would be lost.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<Sourced>> {
        match self {
            Self::Files { paths, keyed } => {
                let Some(path) = paths.pop_front() else { return Ok(None) };
                let value = read_file(&path).await?;
                let key = keyed.then(|| Bytes::copy_from_slice(path.as_os_str().as_encoded_bytes()));
                let input_bytes = value.len() as u64;
                let record = Record { key, value: Some(value.into()), ..Record::default() };
                Ok(Some(Sourced { record, source: RecordSource::File(path), input_bytes }))
            }
            Self::Lines { reader, key_separator, line } => {
                let Some((bytes, input_bytes)) = read_line(reader, *line + 1).await? else { return Ok(None) };
                *line += 1;
                let value = Bytes::from(bytes);
                let record = match key_separator {
                    None => Record::value(value),
                    Some(separator) => {
                        let at = value.windows(separator.len()).position(|window| window == separator.as_slice());
                        let Some(at) = at else { bail!("line {line}: the key separator is missing") };
                        Record::keyed(value.slice(..at), value.slice(at + separator.len()..))
                    }
                };
                Ok(Some(Sourced { record, source: RecordSource::Line(*line), input_bytes }))
            }
        }
    }
}

async fn read_file(path: &Path) -> anyhow::Result<Vec<u8>> {
    let read = async {
        let file = tokio::fs::File::open(path).await?;
        let mut bytes =
            Vec::with_capacity(usize::try_from(file.metadata().await?.len()).unwrap_or(0).min(RECORD_BYTES_MAX));
        file.take(RECORD_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).await?;
        std::io::Result::Ok(bytes)
    };
    let bytes = read.await.with_context(|| format!("reading {}", path.display()))?;
    if bytes.len() > RECORD_BYTES_MAX {
        bail!("{}: larger than {RECORD_BYTES_MAX} bytes", path.display());
    }
    Ok(bytes)
}

/// Returns a line without its line feed, and the bytes read for it.
async fn read_line(
    reader: &mut (dyn AsyncBufRead + Send + Unpin),
    number: u64,
) -> anyhow::Result<Option<(Vec<u8>, u64)>> {
    let mut line = Vec::new();
    let limit = RECORD_BYTES_MAX as u64 + 1;
    let read =
        reader.take(limit).read_until(b'\n', &mut line).await.with_context(|| format!("reading line {number}"))?;
    if read == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if read as u64 == limit {
        bail!("line {number}: longer than {RECORD_BYTES_MAX} bytes");
    }
    Ok(Some((line, read as u64)))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    async fn lines(text: &[u8], separator: Option<&[u8]>) -> anyhow::Result<Vec<Record>> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text).unwrap();
        let mut input = Input::lines(Some(file.path()), separator.map(<[u8]>::to_vec)).await?;
        let mut records = Vec::new();
        while let Some(sourced) = input.next().await? {
            records.push(sourced.record);
        }
        Ok(records)
    }

    #[tokio::test]
    async fn lines_lose_their_line_feed_and_nothing_else() {
        let records = lines(b"a\r\n\n\xff\x00b", None).await.unwrap();
        let values: Vec<&[u8]> = records.iter().map(|record| record.value.as_deref().unwrap()).collect();
        assert_eq!(values, [b"a\r".as_slice(), b"", b"\xff\x00b"]);
        assert!(lines(b"", None).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn keys_stand_before_the_first_separator() {
        let records = lines(b"k=>v=>w\n=>v\n", Some(b"=>")).await.unwrap();
        assert_eq!(records, [Record::keyed("k", "v=>w"), Record::keyed("", "v")]);
        let error = lines(b"k=>v\nnone\n", Some(b"=>")).await.unwrap_err();
        assert_eq!(error.to_string(), "line 2: the key separator is missing");
    }

    #[tokio::test]
    async fn a_keyed_file_is_one_record_with_its_path_as_key() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"two\nlines\n").unwrap();
        let mut input = Input::files(vec![file.path().into()], true);
        assert_eq!(input.size().await, Some(10));
        let sourced = input.next().await.unwrap().unwrap();
        assert_eq!(sourced.record, Record::keyed(file.path().to_str().unwrap().to_owned(), "two\nlines\n"));
        assert!(input.next().await.unwrap().is_none());
        let missing = Input::files(vec!["/nonexistent/x".into()], false).next().await.unwrap_err();
        assert!(format!("{missing:#}").starts_with("reading /nonexistent/x: No such file"), "{missing:#}");
    }
}
