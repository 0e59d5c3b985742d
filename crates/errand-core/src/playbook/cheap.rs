//! Decides which templates are cheap, so that they are evaluated in this process, on the caller's stack.
//!
//! Fuel counts instructions, bytes and items. It counts neither the nesting of a value nor how often a value shares its
//! parts, and walking a value that was built in a template may never finish or overflow the stack. A template is cheap
//! if nothing in it can put one value into another, and if each operation either costs fuel or takes a time that is
//! bounded by the size of the run's data. Everything else (a list of lists, a macro, sorting, a comparison of two
//! values within a loop) is evaluated by an [`Evaluator`](super::Evaluator), which can be killed.
//!
//! # Guarantees
//!
//! The lists here are allow lists: a statement, filter or test that the template library adds is not cheap.

use minijinja::machinery::ast::{
    BinOpKind, CallArg, CompareOpKind, Expr, Filter, ForLoop, Stmt, Test,
};
use minijinja::machinery::{parse, parse_expr};
use minijinja::value::ValueKind;

use super::template::syntax;

/// Maximum operations of a cheap template whose time depends on the sizes of two values, or that create a value that
/// refers to another one.
const WALKS_MAX: usize = 8;
/// Filters that cost fuel and do not put one value into another.
const FILTERS: [&str; 25] = [
    "abs",
    "bool",
    "capitalize",
    "count",
    "d",
    "default",
    "first",
    "float",
    "fromjson",
    "int",
    "join",
    "last",
    "length",
    "lines",
    "list",
    "lower",
    "replace",
    "round",
    "slice",
    "split",
    "string",
    "title",
    "tojson",
    "trim",
    "upper",
];
/// Tests that look at the kind of a value, at a number, or at no more than their argument's size.
const TESTS: [&str; 19] = [
    "boolean",
    "defined",
    "divisibleby",
    "endingwith",
    "even",
    "false",
    "float",
    "int",
    "integer",
    "iterable",
    "mapping",
    "none",
    "number",
    "odd",
    "sequence",
    "startingwith",
    "string",
    "true",
    "undefined",
];
/// The attributes of `loop`.
const LOOP_FIELDS: [&str; 7] = [
    "first",
    "index",
    "index0",
    "last",
    "length",
    "revindex",
    "revindex0",
];

/// Whether a template is cheap. It must be valid and within its bounds.
pub(super) fn is_cheap(source: &str) -> bool {
    parse(source, "", syntax()).is_ok_and(|template| {
        let mut found = Operations::default();
        found.statement(&template) && found.is_within_bounds()
    })
}

/// Like [`is_cheap`] for an expression without its tag.
pub(super) fn is_cheap_expression(source: &str) -> bool {
    parse_expr(source).is_ok_and(|expr| {
        let mut found = Operations::default();
        found.value(&expr) && found.is_within_bounds()
    })
}

#[derive(Default)]
struct Operations {
    /// Comparisons and similar operations on two values that are not constants: each may walk both.
    comparisons: usize,
    /// Values that refer to another one without copying it: `a + b`, `a * 2`, `a[1:]`.
    views: usize,
    loops: bool,
    sets: bool,
}

impl Operations {
    fn is_within_bounds(&self) -> bool {
        let repeated = self.loops && self.comparisons + self.views > 0;
        let chained = self.views > 0 && (self.sets || self.comparisons > 0);
        self.comparisons + self.views <= WALKS_MAX && !repeated && !chained
    }

    fn statements(&mut self, statements: &[Stmt<'_>]) -> bool {
        statements.iter().all(|statement| self.statement(statement))
    }

    fn statement(&mut self, statement: &Stmt<'_>) -> bool {
        match statement {
            Stmt::Template(template) => self.statements(&template.children),
            Stmt::EmitRaw(_) => true,
            Stmt::EmitExpr(emitted) => self.value(&emitted.expr),
            Stmt::IfCond(cond) => {
                self.value(&cond.expr)
                    && self.statements(&cond.true_body)
                    && self.statements(&cond.false_body)
            }
            Stmt::ForLoop(each) => self.for_loop(each),
            Stmt::Set(set) => {
                self.sets = true;
                is_target(&set.target) && self.value(&set.expr)
            }
            Stmt::SetBlock(set) => {
                self.sets = true;
                is_target(&set.target) && set.filter.is_none() && self.statements(&set.body)
            }
            _ => false,
        }
    }

    fn for_loop(&mut self, each: &ForLoop<'_>) -> bool {
        self.loops = true;
        !each.recursive
            && is_target(&each.target)
            && self.value(&each.iter)
            && each
                .filter_expr
                .as_ref()
                .is_none_or(|expr| self.value(expr))
            && self.statements(&each.body)
            && self.statements(&each.else_body)
    }

    fn values<'a, 'e: 'a>(&mut self, values: impl IntoIterator<Item = &'a Expr<'e>>) -> bool {
        values.into_iter().all(|value| self.value(value))
    }

    fn value(&mut self, expr: &Expr<'_>) -> bool {
        match expr {
            Expr::Const(_) => true,
            Expr::Var(var) => !["loop", "self", "caller", "super"].contains(&var.id),
            Expr::UnaryOp(op) => self.value(&op.expr),
            Expr::BinOp(op) => self.operation(op.op, &op.left, &op.right),
            Expr::Compare(chain) => {
                let mut left = &chain.expr;
                let mut fits = self.value(left);
                for next in &chain.ops {
                    fits &= self.value(&next.expr);
                    let contains = matches!(next.op, CompareOpKind::In | CompareOpKind::NotIn);
                    self.compare(left, &next.expr, contains);
                    left = &next.expr;
                }
                fits
            }
            Expr::IfExpr(choice) => {
                self.values([&choice.test_expr, &choice.true_expr])
                    && self.values(&choice.false_expr)
            }
            Expr::Filter(filter) => self.filter(filter),
            Expr::Test(test) => self.test(test),
            Expr::GetAttr(get) => match &get.expr {
                Expr::Var(var) if var.id == "loop" => LOOP_FIELDS.contains(&get.name),
                of => self.value(of),
            },
            Expr::GetItem(get) => {
                // An index into a string is found by counting characters from the start.
                let near = constant(&get.subscript_expr).is_some_and(|key| {
                    key.as_str().is_some()
                        || key.as_i64().is_some_and(|at| (0..=1_000).contains(&at))
                });
                self.comparisons += usize::from(!near);
                self.values([&get.expr, &get.subscript_expr])
            }
            Expr::Slice(slice) => {
                self.views += 1;
                let ends = [&slice.start, &slice.stop, &slice.step];
                self.value(&slice.expr) && self.values(ends.into_iter().flatten())
            }
            Expr::Call(call) => {
                matches!(&call.expr, Expr::Var(var) if var.id == "range")
                    && self.arguments(&call.args)
            }
            Expr::List(list) => list.items.iter().all(is_scalar),
            Expr::Tuple(tuple) => tuple.items.iter().all(is_scalar),
            Expr::Map(map) => map.keys.iter().chain(&map.values).all(is_scalar),
        }
    }

    fn operation(&mut self, op: BinOpKind, left: &Expr<'_>, right: &Expr<'_>) -> bool {
        let number =
            |expr: &Expr<'_>| constant(expr).is_some_and(|value| value.kind() == ValueKind::Number);
        match op {
            BinOpKind::Eq
            | BinOpKind::Ne
            | BinOpKind::Lt
            | BinOpKind::Lte
            | BinOpKind::Gt
            | BinOpKind::Gte => self.compare(left, right, false),
            BinOpKind::In => self.compare(left, right, true),
            BinOpKind::Add => self.views += usize::from(!number(left) && !number(right)),
            BinOpKind::Mul | BinOpKind::Pow => {
                let float =
                    |expr| constant(expr).is_some_and(|n: &minijinja::Value| !n.is_integer());
                let numbers = number(left) && float(left) || number(right) && float(right);
                self.views += usize::from(!numbers);
            }
            BinOpKind::ScAnd
            | BinOpKind::ScOr
            | BinOpKind::Sub
            | BinOpKind::Div
            | BinOpKind::FloorDiv
            | BinOpKind::Rem
            | BinOpKind::Concat => {}
        }
        self.values([left, right])
    }

    /// Counts a comparison, unless one side is a constant: then it ends early or costs fuel.
    fn compare(&mut self, left: &Expr<'_>, right: &Expr<'_>, contains: bool) {
        let constants = matches!(right, Expr::List(_) | Expr::Tuple(_) | Expr::Map(_));
        let free = is_scalar(left) || is_scalar(right) || (contains && constants);
        self.comparisons += usize::from(!free);
    }

    fn arguments(&mut self, arguments: &[CallArg<'_>]) -> bool {
        arguments.iter().all(|argument| match argument {
            CallArg::Pos(value) | CallArg::Kwarg(_, value) => self.value(value),
            CallArg::PosSplat(_) | CallArg::KwargSplat(_) => false,
        })
    }

    fn filter(&mut self, filter: &Filter<'_>) -> bool {
        let args = &filter.args;
        let fits = match filter.name {
            // A value that is not a constant would be put into every item of the list.
            "map" => {
                let more = args.iter().skip(1).all(|arg| {
                    matches!(arg, CallArg::Pos(value) | CallArg::Kwarg(_, value) if is_scalar(value))
                });
                is_known_name_at(args, 0, &FILTERS) && more || only_attribute(args)
            }
            "select" | "reject" => args.is_empty() || is_known_name_at(args, 0, &TESTS),
            "selectattr" | "rejectattr" => {
                is_string_literal_at(args, 0)
                    && (args.len() == 1 || is_known_name_at(args, 1, &TESTS))
            }
            // With another start value, it concatenates lists.
            "sum" => args.is_empty() || only_attribute(args),
            name => FILTERS.contains(&name),
        };
        fits && self.values(&filter.expr) && self.arguments(args)
    }

    fn test(&mut self, test: &Test<'_>) -> bool {
        let constants = test.args.iter().all(|arg| match arg {
            CallArg::Pos(value) => is_scalar(value),
            _ => false,
        });
        TESTS.contains(&test.name) && constants && self.value(&test.expr)
    }
}

fn constant<'e>(expr: &'e Expr<'_>) -> Option<&'e minijinja::Value> {
    match expr {
        Expr::Const(constant) => Some(&constant.value),
        _ => None,
    }
}

fn is_scalar(expr: &Expr<'_>) -> bool {
    match expr {
        Expr::Const(constant) => !matches!(
            constant.value.kind(),
            ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::Plain
        ),
        Expr::UnaryOp(op) => matches!(op.expr, Expr::Const(_)) && is_scalar(&op.expr),
        _ => false,
    }
}

fn is_target(expr: &Expr<'_>) -> bool {
    match expr {
        Expr::Var(_) => true,
        Expr::Tuple(names) => names.items.iter().all(|name| matches!(name, Expr::Var(_))),
        Expr::List(names) => names.items.iter().all(|name| matches!(name, Expr::Var(_))),
        _ => false,
    }
}

/// Whether the argument at an index is a string literal: a computed name could be anything.
fn is_string_literal_at(args: &[CallArg<'_>], at: usize) -> bool {
    matches!(args.get(at), Some(CallArg::Pos(name)) if constant(name).is_some_and(|name| name.as_str().is_some()))
}

fn is_known_name_at(args: &[CallArg<'_>], at: usize, known: &[&str]) -> bool {
    matches!(args.get(at), Some(CallArg::Pos(name))
        if constant(name).and_then(|name| name.as_str()).is_some_and(|name| known.contains(&name)))
}

fn only_attribute(args: &[CallArg<'_>]) -> bool {
    let known = |arg: &CallArg<'_>| match arg {
        CallArg::Kwarg(name, value) => ["attribute", "default"].contains(name) && is_scalar(value),
        _ => false,
    };
    !args.is_empty() && args.iter().all(known)
}
