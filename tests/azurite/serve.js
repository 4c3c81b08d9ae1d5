// Azure's blob storage in memory, with an empty container, until standard input ends.
//
// node serve.js FOLDER PORT CONTAINER: FOLDER is that of Azurite's node_modules. Says "ready" once the container is there.

"use strict";

const crypto = require("node:crypto");
const path = require("node:path");
const { setTimeout: sleep } = require("node:timers/promises");

const [folder, port, container] = process.argv.slice(2);
// The account of the emulator, which is the same everywhere.
const ACCOUNT = "devstoreaccount1";
const KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
const VERSION = "2023-11-03";

async function makeContainer() {
  const date = new Date().toUTCString();
  const resource = `/${ACCOUNT}/${ACCOUNT}/${container}\nrestype:container`;
  const signed = `PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:${date}\nx-ms-version:${VERSION}\n${resource}`;
  const signature = crypto.createHmac("sha256", Buffer.from(KEY, "base64")).update(signed).digest("base64");
  return await fetch(`http://127.0.0.1:${port}/${ACCOUNT}/${container}?restype=container`, {
    method: "PUT",
    headers: {
      "x-ms-date": date,
      "x-ms-version": VERSION,
      Authorization: `SharedKey ${ACCOUNT}:${signature}`,
    },
  });
}

async function main() {
  process.argv = [
    ...process.argv.slice(0, 2),
    ...["--blobHost", "127.0.0.1", "--blobPort", port, "--silent", "--disableTelemetry", "--skipApiVersionCheck"],
    ...["--inMemoryPersistence", "--disableProductStyleUrl"],
  ];
  require(path.join(folder, "node_modules/azurite/dist/src/blob/main.js"));
  for (;;) {
    const made = await makeContainer().catch(() => undefined);
    if (made?.ok) {
      break;
    }
    if (made) {
      throw new Error(`the container: ${made.status} ${await made.text()}`);
    }
    await sleep(50);
  }
  console.log("ready");
}

process.stdin.resume().on("end", () => process.exit(0));
main().catch((error) => {
  console.error(error);
  process.exit(1);
});
