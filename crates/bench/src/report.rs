//! The part of a document that a measurement writes.

use std::path::Path;

use anyhow::{Context, Result};

/// Puts `text` in place of the part called `name` of the document.
pub(crate) fn write(path: &Path, name: &str, text: &str) -> Result<()> {
    let shown = path.display();
    let document = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    let document = with_part(&document, name, text)
        .with_context(|| format!("{shown} has no part between {} and {END}", begin(name)))?;
    std::fs::write(path, document).with_context(|| format!("cannot write {shown}"))
}

const END: &str = "<!-- end of figures -->";

fn begin(name: &str) -> String {
    format!("<!-- figures of {name} -->")
}

fn with_part(document: &str, name: &str, text: &str) -> Option<String> {
    let begin = begin(name);
    let start = document.find(&begin)? + begin.len();
    let end = start + document[start..].find(END)?;
    Some(format!("{}\n\n{}\n\n{}", &document[..start], text.trim(), &document[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "# A\n<!-- figures of a -->\nold\n<!-- end of figures -->\nB\n\
         <!-- figures of b --><!-- end of figures -->\n";

    #[test]
    fn only_the_part_that_was_measured_changes() {
        let once = with_part(DOCUMENT, "b", "new\n").unwrap();
        assert!(once.starts_with("# A\n<!-- figures of a -->\nold\n<!-- end of figures -->\nB\n"));
        assert!(once.ends_with("<!-- figures of b -->\n\nnew\n\n<!-- end of figures -->\n"));
        assert_eq!(with_part(&once, "b", "new").unwrap(), once);
    }

    #[test]
    fn a_document_without_the_part_is_left_alone() {
        assert_eq!(with_part(DOCUMENT, "c", "new"), None);
        assert_eq!(with_part("<!-- figures of a -->", "a", "new"), None);
    }
}
