//! Slack: incoming webhooks, and `chat.postMessage` with a bot's token, which knows threads.

use super::{Message, cut};
use crate::delivery::endpoint::Endpoint;
use crate::store::Delivery;
use serde_json::{Value, json};

/// Slack refuses longer texts: of a section (3,000 characters), of a header (150).
const LONGEST_TEXT: usize = 2_900;
const LONGEST_HEADER: usize = 150;

/// Text for notifications and screen readers, and the same in blocks.
pub(super) fn post(endpoint: &Endpoint, delivery: &Delivery, message: &Message) -> String {
    let headline = message.headline();
    let mut blocks = vec![json!({ "type": "header", "text": { "type": "plain_text", "text": cut(&headline, LONGEST_HEADER) } })];
    blocks.push(section(&told(message)));
    let commands = message.commands();
    if !commands.is_empty() {
        let commands: Vec<String> = commands.iter().map(|(label, text)| format!("{label}\n```{}```", escape(text))).collect();
        blocks.push(section(&commands.join("\n")));
    }
    let d = &message.data;
    let links = d.links.iter().map(|(name, url)| format!("<{}|{}>", escape(url), escape(name)));
    let small: Vec<String> = links.chain([escape(&d.decision)]).filter(|text| !text.is_empty()).collect();
    if !small.is_empty() {
        let text = cut(&small.join("  ·  "), LONGEST_TEXT);
        blocks.push(json!({ "type": "context", "elements": [{ "type": "mrkdwn", "text": text }] }));
    }
    let mut post = json!({ "text": escape(&cut(&format!("{headline}\n{}", message.table()), LONGEST_TEXT)), "blocks": blocks });
    if endpoint.token.is_some() {
        let of_rule =
            serde_json::from_str::<Value>(&delivery.payload).ok().and_then(|m| m["data"]["body"]["channel"].as_str().map(str::to_owned));
        post["channel"] = json!(of_rule.as_ref().or(endpoint.texts.get("channel")));
        post["unfurl_links"] = json!(false);
        if let Some(thread) = &delivery.thread {
            post["thread_ts"] = json!(thread);
            // Who does not follow the thread has to hear of what is still wrong.
            post["reply_broadcast"] = json!(message.severity() == "critical");
        }
    }
    post.to_string()
}

/// What an answer with 2xx says: the message's `ts` if it is known, or what Slack refuses it for.
pub(in crate::delivery) fn took(body: &[u8]) -> Result<Option<String>, String> {
    match serde_json::from_slice::<Value>(body) {
        Ok(answer) if answer["ok"] == true => Ok(answer["ts"].as_str().map(str::to_owned)),
        Ok(Value::Object(_)) => Err("Slack did not take it".to_owned()),
        _ if body.trim_ascii() == b"ok" => Ok(None),
        _ => Err("the answer is not `ok`".to_owned()),
    }
}

fn told(message: &Message) -> String {
    let mut text = String::new();
    for (label, line) in message.lines() {
        let label = if label.is_empty() { String::new() } else { format!("*{label}*  ") };
        text.push_str(&format!("{label}{}\n", escape(&line)));
    }
    text
}

fn section(text: &str) -> Value {
    json!({ "type": "section", "text": { "type": "mrkdwn", "text": cut(text.trim_end(), LONGEST_TEXT) } })
}

/// The three characters that Slack gives a meaning to; three back quotes would end a block.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace("```", "'''")
}
