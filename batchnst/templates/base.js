"use strict";

// Functions that all pages share. Text from outside enters a page only as text nodes and attributes.

const byId = (id) => document.getElementById(id);

// A new element with these properties or attributes; children that are null or "" are left out.
function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== ""));
  return node;
}

const whole = new Intl.NumberFormat("en");
const plural = (number, one) => `${whole.format(number)} ${one}${number === 1 ? "" : "s"}`;

// A number with four digits, in millions (M) or billions (bn) if it is large.
function figure(value) {
  if (value === null || value === undefined) return "–";
  for (const [unit, name] of [[1e9, " bn"], [1e6, " M"]]) {
    if (Math.abs(value) >= unit) return Number((value / unit).toPrecision(4)) + name;
  }
  return Math.abs(value) >= 1000 ? whole.format(Math.round(value)) : String(Number(value.toPrecision(4)));
}

function duration(seconds) {
  if (seconds < 100) return `${Number(seconds.toPrecision(3))} s`;
  if (seconds < 600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 100 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}
