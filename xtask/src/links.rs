//! The check that links between the tree's Markdown files lead somewhere.
//!
//! A relative link has to name a file of the tree; a fragment has to name one of its headings.
//! Links to other places are left alone. In `docs/behaviours.md` the tests that it names have to exist, too.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use crate::process::root;

pub(crate) fn check() -> Result<()> {
    let mut broken = Vec::new();
    for file in files("*.md")? {
        let text = read(&file)?;
        for link in page(&text).links {
            if let Some(why) = why_broken(&file, &link)? {
                let name = file.strip_prefix(root()).unwrap_or(&file).display();
                broken.push(format!("{name}: link to {link}: {why}"));
            }
        }
    }
    if !broken.is_empty() {
        bail!("links that lead nowhere:\n  {}", broken.join("\n  "));
    }
    check_tests()
}

/// Looks for the tests that `docs/behaviours.md` names as `crate::file::test`.
fn check_tests() -> Result<()> {
    let sources: Vec<(String, String)> = files("crates/*.rs")?
        .into_iter()
        .map(|file| {
            let name = file.strip_prefix(root()).unwrap_or(&file).display().to_string();
            Ok((name, read(&file)?))
        })
        .collect::<Result<_>>()?;
    let page = read(&root().join("docs/behaviours.md"))?;
    let is_there = |test: &str| sources.iter().any(|(name, text)| has_test(name, text, test));
    let missing: Vec<_> = tests_named(&page).filter(|test| !is_there(test)).collect();
    if !missing.is_empty() {
        bail!("docs/behaviours.md names tests that are not there:\n  {}", missing.join("\n  "));
    }
    Ok(())
}

fn tests_named(page: &str) -> impl Iterator<Item = &str> {
    let code = page.split('`').skip(1).step_by(2);
    code.filter(|code| code.matches("::").count() >= 2)
}

/// True if the source file `name` can be what `test` names, and has it.
fn has_test(name: &str, text: &str, test: &str) -> bool {
    let Some((place, function)) = test.rsplit_once("::") else { return false };
    let Some((package, module)) = place.split_once("::") else { return false };
    name.starts_with(&format!("crates/{package}/"))
        && name.contains(&format!("/{}", module.replace("::", "/")))
        && text.contains(&format!("fn {function}() {{"))
}

/// The files like `pattern` that git knows or would add.
fn files(pattern: &str) -> Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", pattern])
        .current_dir(root())
        .output()
        .context("cannot run git")?;
    if !output.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let names = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    let files = names.split_terminator('\0').map(|name| root().join(name));
    Ok(files.filter(|file| file.exists()).collect())
}

fn why_broken(file: &Path, link: &str) -> Result<Option<String>> {
    if link.contains("://") || link.starts_with("mailto:") {
        return Ok(None);
    }
    let (path, fragment) = link.split_once('#').unwrap_or((link, ""));
    let folder = file.parent().expect("a file is in a folder");
    let target = if path.is_empty() { file.to_owned() } else { folder.join(path) };
    if !target.exists() {
        return Ok(Some("no such file".to_owned()));
    }
    if fragment.is_empty() || target.extension().is_none_or(|extension| extension != "md") {
        return Ok(None);
    }
    let known = page(&read(&target)?).anchors.contains(fragment);
    Ok((!known).then(|| "no such heading".to_owned()))
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

/// What a Markdown page refers to and what can be referred to in it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Page {
    links: Vec<String>,
    anchors: BTreeSet<String>,
}

fn page(text: &str) -> Page {
    let mut page = Page::default();
    let mut heading: Option<String> = None;
    for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                page.links.push(dest_url.into_string());
            }
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::End(TagEnd::Heading(_)) => {
                let anchor = anchor(&heading.take().unwrap_or_default());
                // The second heading of the same name gets a number, as code hosts do it.
                let numbered = (1..).map(|n| format!("{anchor}-{n}"));
                let mut names = std::iter::once(anchor.clone()).chain(numbered);
                let name = names.find(|name| !page.anchors.contains(name));
                page.anchors.extend(name);
            }
            Event::Text(text) | Event::Code(text) => {
                if let Some(heading) = &mut heading {
                    heading.push_str(&text);
                }
            }
            _ => {}
        }
    }
    page
}

/// A heading's fragment: lower case, spaces as hyphens, other signs left out.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_headings_of_a_page_are_found() {
        let page = page("# The `log`, twice\n[a](b.md#c)\n\n[d]\n\n[d]: e.md\n# The log twice\n");
        assert_eq!(page.links, ["b.md#c", "e.md"]);
        let anchors: Vec<_> = page.anchors.iter().map(String::as_str).collect();
        assert_eq!(anchors, ["the-log-twice", "the-log-twice-1"]);
    }

    #[test]
    fn a_test_is_found_by_its_crate_file_and_name() {
        let page =
            "a `word`, `replay::debian_boot`, `ft::node::one` and `devices::virtio::net::two`";
        let named: Vec<_> = tests_named(page).collect();
        assert_eq!(named, ["ft::node::one", "devices::virtio::net::two"]);
        let text = "#[test]\nfn two() {\n}\n";
        let has = |name: &str, test: &str| has_test(name, text, test);
        assert!(has("crates/devices/src/virtio/net/tests.rs", "devices::virtio::net::two"));
        assert!(!has("crates/devices/src/virtio/net/tests.rs", "devices::virtio::net::tw"));
        assert!(!has("crates/devices/src/virtio/blk/tests.rs", "devices::virtio::net::two"));
        assert!(!has("crates/disk/src/virtio/net/tests.rs", "devices::virtio::net::two"));
    }

    #[test]
    fn a_link_to_a_missing_file_or_heading_is_broken() {
        let folder = std::env::temp_dir().join(format!("xtask-links-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("a.md");
        fs::write(&file, "# Here\n").unwrap();
        let why = |link: &str| why_broken(&file, link).unwrap();

        assert_eq!(why("a.md#here"), None);
        assert_eq!(why("#here"), None);
        assert_eq!(why("https://example.org/nowhere"), None);
        assert_eq!(why("#there").as_deref(), Some("no such heading"));
        assert_eq!(why("b.md").as_deref(), Some("no such file"));
        fs::remove_dir_all(&folder).unwrap();
    }
}
