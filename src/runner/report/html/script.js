// Shows the tests whose names contain a text, or those that failed. Without it all are shown.
const form = document.getElementById("filter");
const [name, bad] = form.querySelectorAll("input");
const good = ["pass", "skip", "xfail"];
function show() {
    for (const test of document.querySelectorAll(".test")) {
        const named = test.querySelector("summary span").textContent.toLowerCase().includes(name.value.toLowerCase());
        test.hidden = !named || (bad.checked && good.some((status) => test.classList.contains(status)));
    }
}
form.hidden = false;
form.addEventListener("input", show);
form.addEventListener("submit", (event) => event.preventDefault());
// A link of the matrix shows its test again, unfolded.
addEventListener("hashchange", () => {
    const test = document.querySelector(location.hash)?.closest(".test");
    if (test) {
        test.hidden = false;
        test.open = true;
        test.scrollIntoView();
    }
});
