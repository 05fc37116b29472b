//! Figures as SVG: success against load as in the DAGOR paper's figures, and
//! goodput over time where something changes.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use plotters::prelude::*;

use super::Options;
use super::controller::Kind;
use super::scenario::MOST_CALLS;
use super::table::{self, Row};

const SIZE: (u32, u32) = (720, 440);
/// Told apart by people who do not see all colours, as far as eight lines can be.
const COLOURS: [(Kind, RGBColor); 9] = [
    (Kind::None, RGBColor(153, 153, 153)),
    (Kind::Random, RGBColor(240, 198, 66)),
    (Kind::Codel, RGBColor(86, 180, 233)),
    (Kind::Facebook, RGBColor(0, 114, 178)),
    (Kind::Seda, RGBColor(204, 121, 167)),
    (Kind::Dagor, RGBColor(230, 159, 0)),
    (Kind::DagorAlone, RGBColor(213, 94, 0)),
    (Kind::Tidegate, RGBColor(0, 130, 90)),
    (Kind::Oracle, RGBColor(40, 40, 40)),
];

/// A line of a figure.
struct Line {
    name: String,
    colour: RGBColor,
    width: u32,
    points: Vec<(f64, f64)>,
}

/// A figure's frame.
struct Frame<'a> {
    title: &'a str,
    x: &'a str,
    y: &'a str,
    x_max: f64,
    y_max: f64,
}

/// Writes all figures into a directory, which is made if need be.
pub(super) fn write(directory: &Path, rows: &[Row], options: &Options) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let x_max = options.loads.iter().copied().fold(1.0, f64::max);
    for calls in 1..=MOST_CALLS {
        let mut lines = Vec::new();
        let best = |load: f64| (load, (1.0 / load).min(1.0));
        let fine = (1..=200).map(|step| best(x_max * f64::from(step) / 200.0));
        lines.push(Line {
            name: "optimum".into(),
            colour: RGBColor(200, 200, 200),
            width: 5,
            points: fine.filter(|point| point.0 >= 0.25).collect(),
        });
        for &law in options.laws() {
            let of = |row: &&Row| row.profile == "steady" && row.calls == calls && row.law == law;
            let points = rows.iter().filter(of).map(|row| (row.load, row.success()));
            lines.push(line(law, points.collect()));
        }
        let frame = Frame {
            title: &format!("M{calls}: tasks of {calls} call(s)"),
            x: "load ÷ capacity",
            y: "share of tasks that succeed",
            x_max,
            y_max: 1.05,
        };
        draw(&directory.join(format!("success-m{calls}.svg")), &frame, &lines)?;
    }
    let changes = [
        ("step", "M2, load 0.5, then 5 from second 5, then 0.7 from second 15"),
        ("half lost", "M2, load 0.8, half of the capacity lost from second 5 to 15"),
    ];
    for (profile, title) in changes {
        let mut lines = vec![Line {
            name: "optimum".into(),
            colour: RGBColor(200, 200, 200),
            width: 5,
            points: table::optimum_curve(profile),
        }];
        for row in rows.iter().filter(|row| row.profile == profile) {
            lines.push(line(row.law, row.goodput_curve.clone()));
        }
        let points = lines.iter().flat_map(|line| &line.points);
        // Room for the legend at the right.
        let (x_max, y_max) = points.fold((1.0_f64, 1.0_f64), |(x, y), point| {
            (x.max((point.0 * 1.25).ceil()), y.max(point.1 * 1.05))
        });
        let frame = Frame { title, x: "seconds", y: "tasks completed per second", x_max, y_max };
        let file = format!("goodput-{}.svg", profile.replace(' ', "-"));
        draw(&directory.join(file), &frame, &lines)?;
    }
    Ok(())
}

fn line(law: Kind, points: Vec<(f64, f64)>) -> Line {
    let colour = COLOURS.iter().find(|(kind, _)| *kind == law).map_or(BLACK, |(_, colour)| *colour);
    let width = if law == Kind::Tidegate { 3 } else { 1 };
    Line { name: law.name().to_owned(), colour, width, points }
}

fn draw(file: &Path, frame: &Frame<'_>, lines: &[Line]) -> Result<()> {
    let mut text = String::new();
    paint(&mut text, frame, lines).map_err(|error| anyhow!("{}: {error}", file.display()))?;
    fs::write(file, text).with_context(|| file.display().to_string())
}

fn paint(
    text: &mut String,
    frame: &Frame<'_>,
    lines: &[Line],
) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(text, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(frame.title, ("sans-serif", 17))
        .margin(12)
        .x_label_area_size(38)
        .y_label_area_size(52)
        .build_cartesian_2d(0.0..frame.x_max, 0.0..frame.y_max)?;
    chart
        .configure_mesh()
        .x_desc(frame.x)
        .y_desc(frame.y)
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .label_style(("sans-serif", 12))
        .draw()?;
    for line in lines {
        let style = ShapeStyle::from(line.colour).stroke_width(line.width);
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), style))?
            .label(line.name.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.2))
        .label_font(("sans-serif", 12))
        .draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_has_a_line_and_a_legend_for_each_law_and_loads_nothing() {
        let frame = Frame { title: "M2 & more", x: "load", y: "success", x_max: 2.0, y_max: 1.0 };
        let lines: Vec<Line> =
            Kind::ALL.iter().map(|&law| line(law, vec![(0.5, 1.0), (2.0, 0.5)])).collect();
        let mut text = String::new();
        paint(&mut text, &frame, &lines).expect("a figure");
        assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"));
        for law in Kind::ALL {
            assert!(text.contains(law.name()), "{law:?}");
        }
        assert!(text.contains("M2 &amp; more") && !text.contains("<script"));
        // Each in the plot and once more in the legend.
        assert!(text.matches("<polyline").count() >= 2 * lines.len());
    }
}
