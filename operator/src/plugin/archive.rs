//! Writes a .tar.gz. All files are in one folder, and untrusted names are sanitised before they become paths.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::error::PluginError;

pub(super) struct Archive<W: Write> {
    tar: tar::Builder<GzEncoder<W>>,
    folder: String,
    mtime_s: u64,
    files: usize,
}

impl<W: Write> Archive<W> {
    /// `mtime_s` is the modification time of all files, in seconds since the Unix epoch.
    pub(super) fn new(to: W, folder: &str, mtime_s: u64) -> Self {
        let tar = tar::Builder::new(GzEncoder::new(to, Compression::default()));
        Self { tar, folder: folder.to_owned(), mtime_s, files: 0 }
    }

    /// Adds a file. In each part of the name, characters other than letters, digits, `.`, `-` and `_` become `_`.
    pub(super) fn add(&mut self, name: &[&str], contents: &[u8]) -> Result<(), PluginError> {
        let path = name.iter().map(|part| plain(part)).collect::<Vec<_>>().join("/");
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.mtime_s);
        let path = format!("{}/{path}", self.folder);
        self.files += 1;
        self.tar.append_data(&mut header, &path, contents).map_err(PluginError::io(path))
    }

    /// Finishes the archive. Returns the writer and the number of files.
    pub(super) fn finish(self) -> Result<(W, usize), PluginError> {
        let files = self.files;
        let to = self.tar.into_inner().and_then(GzEncoder::finish).map_err(PluginError::io("the archive"))?;
        Ok((to, files))
    }
}

fn plain(part: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let name: String = part.chars().map(|c| if is_plain(c) { c } else { '_' }).take(128).collect();
    if name.is_empty() || name.starts_with('.') { format!("_{name}") } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_out_of_the_folder() {
        assert_eq!(plain("log-0"), "log-0");
        assert_eq!([plain(".."), plain("../x"), plain(""), plain("a/b")], ["_..", "_.._x", "_", "a_b"]);
    }
}
