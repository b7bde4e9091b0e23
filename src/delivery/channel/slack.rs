//! Slack incoming webhooks.

use super::Message;
use serde_json::{Value, json};

/// Slack refuses longer section texts (3,000 characters).
const LONGEST_TEXT: usize = 2_800;

/// Text for notifications and screen readers, and the same in blocks.
pub(super) fn post(message: &Message) -> String {
    let headline = escape(&message.headline());
    let lines = message.lines();
    let table: Vec<String> = lines.iter().map(|(label, text)| format!("{label:<6} {}", escape(text))).collect();
    let table = cut(&table.join("\n"), LONGEST_TEXT);
    let links: Vec<String> = message.data.links.iter().map(|(name, url)| format!("<{}|{}>", escape(url), escape(name))).collect();
    let mut blocks = vec![section(format!("*{}*", cut(&headline, 300))), section(format!("```{table}```"))];
    if !links.is_empty() {
        blocks.push(section(cut(&links.join("  "), LONGEST_TEXT)));
    }
    json!({ "text": format!("{headline}\n{table}"), "blocks": blocks }).to_string()
}

fn section(text: String) -> Value {
    json!({ "type": "section", "text": { "type": "mrkdwn", "text": text } })
}

/// The three characters that Slack gives a meaning to; a back quote would end the block.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace("```", "'''")
}

fn cut(text: &str, longest: usize) -> String {
    text.chars().take(longest).collect()
}
