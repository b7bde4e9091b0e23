//! Expressions in CEL over one record, compiled once. Their cost is bounded by their length and the record's.

use cel::common::ast::{EntryExpr, Expr, IdedExpr};
use cel::{Context, Program, Value};

/// Bytes of an expression at most.
pub const MAX_LENGTH: usize = 1_024;
/// Brackets inside brackets at most.
const MAX_DEPTH: usize = 16;
/// The one variable.
const RECORD: &str = "record";

/// A compiled expression.
#[derive(Debug)]
pub struct Expression(Program);

/// Why a text is no expression.
#[derive(Debug, PartialEq)]
pub struct Fault {
    /// Byte of the text where it was noticed.
    pub at: usize,
    pub message: String,
}

impl Expression {
    /// # Errors
    /// The first place where the text is not CEL, or asks for what is not there.
    pub fn compile(text: &str) -> Result<Expression, Fault> {
        bounds(text)?;
        let program = Program::compile(text).map_err(|faults| {
            let first = faults.errors.into_iter().next();
            let (at, message) = first.map_or((0, "not an expression".to_owned()), |e| (byte(text, e.pos), e.msg));
            // The list of all that could stand there instead helps nobody.
            Fault { at, message: message.split(" expecting {").next().unwrap_or_default().to_owned() }
        })?;
        let offset = |id| program.source_info().offset_for(id).map_or(0, |(start, _)| start as usize).min(text.len());
        check(program.expression(), &offset)?;
        Ok(Expression(program))
    }

    /// Whether it is true of the record. What cannot be computed, and what is no truth value, is not.
    pub fn holds(&self, scope: &Scope<'_>) -> bool {
        matches!(self.0.execute(&scope.0), Ok(Value::Bool(true)))
    }

    /// The value for the record as JSON text; nothing where it cannot be computed, or is no scalar.
    pub fn value(&self, scope: &Scope<'_>) -> Option<String> {
        Some(match self.0.execute(&scope.0).ok()? {
            Value::Bool(b) => b.to_string(),
            Value::Int(n) => n.to_string(),
            Value::UInt(n) => n.to_string(),
            Value::Float(x) if x.is_finite() => x.to_string(),
            Value::String(text) => serde_json::Value::from(text.as_str()).to_string(),
            _ => return None,
        })
    }
}

/// CEL's own functions: costly to make, so one for each thread.
#[derive(Default)]
pub struct Functions(Context<'static, 'static>);

/// A record that expressions look at.
pub struct Scope<'f>(Context<'f, 'static>);

impl Functions {
    pub fn scope(&self, record: Value) -> Scope<'_> {
        let mut scope = self.0.new_inner_scope();
        scope.add_variable_from_value(RECORD, record);
        Scope(scope)
    }
}

/// What the parser, which recurses, must not be given.
fn bounds(text: &str) -> Result<(), Fault> {
    let fault = |at, message: String| Err(Fault { at, message });
    if text.len() > MAX_LENGTH {
        return fault(MAX_LENGTH, format!("an expression has at most {MAX_LENGTH} bytes"));
    }
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        if depth > MAX_DEPTH as i32 {
            return fault(at, format!("brackets are nested more than {MAX_DEPTH} deep"));
        }
    }
    Ok(())
}

/// Line and column, both from 1, as a byte.
fn byte(text: &str, (line, column): (isize, isize)) -> usize {
    let skipped: usize = text.split_inclusive('\n').take(usize::try_from(line - 1).unwrap_or(0)).map(str::len).sum();
    (skipped + usize::try_from(column - 1).unwrap_or(0)).min(text.len())
}

/// Reports names that do not exist, and loops: over an object they would see its members in an order that changes from run to run.
fn check(node: &IdedExpr, offset: &impl Fn(u64) -> usize) -> Result<(), Fault> {
    let fault = |message: String| Err(Fault { at: offset(node.id), message });
    match &node.expr {
        Expr::Unspecified | Expr::Literal(_) => Ok(()),
        Expr::Ident(name) if name == RECORD => Ok(()),
        Expr::Ident(name) => fault(format!("`{name}` is unknown; a field of the record is `record.{name}`")),
        Expr::Select(select) => check(&select.operand, offset),
        Expr::Call(call) => call.target.as_deref().into_iter().chain(&call.args).try_for_each(|n| check(n, offset)),
        Expr::List(list) => list.elements.iter().try_for_each(|n| check(n, offset)),
        Expr::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
            EntryExpr::MapEntry(entry) => [&entry.key, &entry.value].into_iter().try_for_each(|n| check(n, offset)),
            EntryExpr::StructField(field) => check(&field.value, offset),
        }),
        Expr::Struct(_) => fault("there are no message types here".to_owned()),
        Expr::Comprehension(_) => fault("there are no loops here; `x in record.list` and `has(record.x)` ask without one".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fault(text: &str) -> (usize, String) {
        let fault = Expression::compile(text).unwrap_err();
        (fault.at, fault.message)
    }

    #[test]
    fn what_is_wrong_has_a_place() {
        assert_eq!(fault("record.a == && 1").0, 12);
        assert_eq!(fault("1 +\n  other").0, 6);
        assert!(fault("record.list.exists(x, x > 1)").1.contains("loops"));
        assert!(fault("Point{x: 1}").1.contains("message types"));
        assert_eq!(fault(&"(".repeat(17)).0, 16);
        assert_eq!(fault(&"a".repeat(MAX_LENGTH + 1)).0, MAX_LENGTH);
    }

    #[test]
    fn an_expression_is_computed_for_a_record() {
        let functions = Functions::default();
        let scope = functions.scope(Value::from(7));
        let value = |text: &str| Expression::compile(text).unwrap().value(&scope);
        assert_eq!(value("record * 2").as_deref(), Some("14"));
        assert_eq!(value("record > 2.5 && !(record in [1, 2])").as_deref(), Some("true"));
        assert_eq!(value("string(record) + '\"'").as_deref(), Some("\"7\\\"\""));
        for none in ["record.x", "record / 0", "[record]", "9223372036854775807 + record", "1.0 / 0.0"] {
            assert_eq!(value(none), None, "{none}");
        }
        assert!(!Expression::compile("record").unwrap().holds(&scope), "no truth value");
    }

    /// As deep as the bounds allow, on a small stack.
    #[test]
    fn nothing_within_the_bounds_exhausts_the_stack() {
        let nested = format!("{}record{}", "(".repeat(MAX_DEPTH), ")".repeat(MAX_DEPTH));
        let long =
            [nested, "!".repeat(1_000) + "true", "-".repeat(1_000) + "1", "true?1:".repeat(140) + "1", "1".to_owned() + &"+1".repeat(500)];
        for text in long.into_iter().chain([format!("record{}", ".a".repeat(500)), "[0]".repeat(300)]) {
            let _ = Expression::compile(&text).map(|e| e.value(&Functions::default().scope(Value::from(1))));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_text_is_compiled_or_refused(text in "[a-z0-9.'\"()\\[\\]{}!<>=&|?:+*/%, \\\\-]{0,30}|\\PC{0,12}") {
            if let Ok(expression) = Expression::compile(&text) {
                expression.value(&Functions::default().scope(Value::from("x")));
            }
        }
    }
}
