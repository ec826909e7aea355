// A link to what is folded away opens it, and so does printing.
const reveal = (element) => { for (let part = element; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true; };
const follow = () => { const target = document.getElementById(decodeURIComponent(location.hash.slice(1))); if (target) { reveal(target); target.scrollIntoView(); } };
addEventListener("hashchange", follow);
addEventListener("beforeprint", () => document.querySelectorAll("details.numbers, details.more").forEach((part) => { part.open = true; }));
follow();
