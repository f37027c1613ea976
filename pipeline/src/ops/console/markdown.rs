//! The program's own pages as HTML. They are ours and inert all the same: HTML in them is text, and links lead to other pages of the console or, spelt
//! out, to the outside.

use maud::{Markup, PreEscaped};
use pulldown_cmark::{Alignment, Event, HeadingLevel, Options, Parser, Tag, TagEnd};

use crate::ops::docs::{self, Page};

/// A page below its title, which the console shows itself.
pub(super) fn body(page: &Page) -> Markup {
    PreEscaped(render(page.path, page.text))
}

/// Where a page of the program is shown.
pub(super) fn address(page: &Page) -> String {
    super::link("/explain", &[("page", page.path.strip_suffix(".md").unwrap_or(page.path))])
}

fn render(path: &str, markdown: &str) -> String {
    let mut events = Vec::new();
    let mut title = false;
    // Of each open link whether it leads somewhere.
    let mut links = Vec::new();
    for event in Parser::new_ext(markdown, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::Heading { level: HeadingLevel::H1, .. }) => title = true,
            Event::End(TagEnd::Heading(HeadingLevel::H1)) => title = false,
            _ if title => {}
            Event::Html(html) | Event::InlineHtml(html) => events.push(Event::Text(html)),
            Event::Start(Tag::HtmlBlock) => events.push(Event::Start(Tag::Paragraph)),
            Event::End(TagEnd::HtmlBlock) => events.push(Event::End(TagEnd::Paragraph)),
            Event::Start(Tag::Image { .. }) | Event::End(TagEnd::Image) => {}
            Event::Start(Tag::Link { link_type, dest_url, .. }) => {
                let leads = target(path, &dest_url);
                links.push(leads.is_some());
                if let Some(dest_url) = leads {
                    events.push(Event::Start(Tag::Link { link_type, dest_url: dest_url.into(), title: "".into(), id: "".into() }));
                }
            }
            Event::End(TagEnd::Link) => {
                if links.pop() == Some(true) {
                    events.push(Event::End(TagEnd::Link));
                }
            }
            Event::Start(Tag::Table(columns)) => {
                events.push(Event::Html("<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Table\">".into()));
                // Alignment would come as a style, which the console's policy refuses.
                events.push(Event::Start(Tag::Table(vec![Alignment::None; columns.len()])));
            }
            Event::End(TagEnd::Table) => events.extend([Event::End(TagEnd::Table), Event::Html("</div>".into())]),
            // Below the page's own headings in the console: a level deeper.
            Event::Start(Tag::Heading { level, .. }) => {
                events.push(Event::Start(Tag::Heading { level: below(level), id: None, classes: Vec::new(), attrs: Vec::new() }));
            }
            Event::End(TagEnd::Heading(level)) => events.push(Event::End(TagEnd::Heading(below(level)))),
            other => events.push(other),
        }
    }
    let mut out = String::with_capacity(markdown.len() * 3 / 2);
    pulldown_cmark::html::push_html(&mut out, events.into_iter());
    out
}

fn below(level: HeadingLevel) -> HeadingLevel {
    match level {
        HeadingLevel::H1 => HeadingLevel::H2,
        HeadingLevel::H2 => HeadingLevel::H3,
        HeadingLevel::H3 => HeadingLevel::H4,
        HeadingLevel::H4 => HeadingLevel::H5,
        HeadingLevel::H5 | HeadingLevel::H6 => HeadingLevel::H6,
    }
}

/// Where a link of a page leads; `None` where the console has no such place, as for a file of the repository.
fn target(from: &str, to: &str) -> Option<String> {
    if to.starts_with("https://") {
        return Some(to.to_owned());
    }
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in to.split('#').next().unwrap_or_default().split('/') {
        match part {
            ".." => {
                parts.pop()?;
            }
            "." => {}
            part => parts.push(part),
        }
    }
    let path = parts.join("/");
    docs::PAGES.iter().find(|page| page.path == path).map(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_headings_lists_tables_and_code_and_lead_to_each_other() {
        let page = render(
            "codes/x.md",
            "# Title\n\nWords with `code`.\n\n## First\n\n- [alert](../alerts/TillstreamDown.md#fix)\n- [file](../../../Cargo.toml)\n- [out](https://example.org/)\n\n## Second\n\n    tillstream status\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n",
        );
        assert!(!page.contains("Title"), "{page}");
        for part in [
            "<p>Words with <code>code</code>.</p>",
            "<h3>First</h3>",
            "<li><a href=\"/explain?page=alerts%2FTillstreamDown\">alert</a></li>",
            "<li>file</li>",
            "<a href=\"https://example.org/\">out</a>",
            "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Table\"><table>",
            "<pre><code>tillstream status\n</code></pre>",
            "<td>2</td>",
        ] {
            assert!(page.contains(part), "{part} is not in {page}");
        }
    }

    #[test]
    fn html_in_a_page_is_text() {
        for evil in [
            "<script>alert(1)</script>\n\nafter\n",
            "words <img src=x onerror=alert(1)> words\n",
            "<div onclick=\"alert(1)\">\n\n[x](javascript:alert(1)) ![y](https://evil.example/z.png)\n\n</div>\n",
            "[x](http://evil.example/) <!-- --> `<b>`\n",
        ] {
            let page = render("codes/x.md", evil);
            let tags = page.matches('<').count();
            let ours =
                ["<p>", "</p>", "<code>", "</code>", "<a href=\"https://"].map(|tag| page.matches(tag).count()).iter().sum::<usize>();
            assert_eq!(tags, ours, "{page}");
            assert!(!page.contains("href=\"javascript") && !page.contains("src=\""), "{page}");
        }
    }

    #[test]
    fn every_page_of_the_program_is_shown_whole() {
        for page in docs::PAGES {
            let html = body(page).into_string();
            let headings = page.text.lines().filter(|line| line.starts_with("## ")).count();
            assert!(html.matches("<h3>").count() >= headings, "{}: {html}", page.path);
            assert!(!html.contains("](") && !html.contains("| --- |"), "{}: {html}", page.path);
            let commands = page.text.lines().find_map(|line| line.strip_prefix("    tillstream "));
            if let Some(command) = commands {
                let first = command.split_whitespace().next().unwrap_or_default();
                assert!(html.contains(&format!("tillstream {first}")), "{}", page.path);
            }
        }
    }
}
