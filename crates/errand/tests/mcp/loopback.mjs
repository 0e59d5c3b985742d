// Starts the server of the protocol's authors over HTTP on a free port of the loopback alone, and says which.
import net from "node:net";

const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (...given) {
  const then = given.find((argument) => typeof argument === "function");
  return listen.call(this, 0, "127.0.0.1", () => {
    console.log(`PORT ${this.address().port}`);
    then?.();
  });
};
process.argv[2] = "streamableHttp";
await import(process.env.SERVER);
